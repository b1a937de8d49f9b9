"""The report of a sweep that MLflow alone knows of."""

import shutil

import pytest
from mlflow import MlflowClient
from PIL import Image

from rayreid.errors import UserError
from rayreid.reports.sweep_report import find, report
from rayreid.reports.trial_results import latest, selection_costs, trials_of
from rayreid.tracking.history import History
from tracked_sweep import NOTHING, WHOLE, put_down


@pytest.fixture(scope="module")
def swept(root):
    """The sweep's run; nothing lies in the output root but MLflow's own."""
    return put_down(root, stems=("patchify", "ics"))


@pytest.fixture(scope="module")
def page(swept, root):
    return report("swept").read_text()


def cells(page: str, head: str) -> list[list[str]]:
    """The rows of the table whose first heading is `head`."""
    table = next(part for part in page.split("<table>")[1:] if f"<th>{head}</th>" in part.split("</tr>")[0])
    rows = table.split("</table>")[0].split("<tr>")[2:]
    return [[cell.split("</td>")[0] for cell in row.split("<td>")[1:]] for row in rows]


def test_outcomes_are_read_back_and_what_two_trials_share_counts_once(swept, root):
    history, _, top, members = find("swept")
    assert top.id == swept.id
    trials = trials_of(members)
    assert len(trials) == 27 and sum(one.outcome is None for one in trials) == 1
    whole = [one.outcome for one in trials if one.outcome and one.outcome.fraction == 1 and one.outcome.stem == "ics"]
    assert len(whole) == 4 and len({one.result for one in whole}) == 2
    assert sorted({one.scores["mAP"] for one in whole}) == pytest.approx([WHOLE + 0.05, WHOLE + 0.06])
    assert all(one.outcome.extras == {} for one in trials if one.outcome)
    assert selection_costs(history, [one.record for one in trials]) == {"score": (1, 0.5, 0.5)}


def test_the_page_says_whether_trials_share_epochs_or_steps(page):
    assert "Budget of the pre-trainings: rows share their epochs (3), not their steps (24 to 96)." in page


def test_a_parameter_that_no_column_tells_parts_settings(root):
    top = put_down(root, "rates", seeds=(0,))
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    for number, child in enumerate(History(f"sqlite:///{root / 'mlflow.db'}").children(find("rates")[2])):
        for key in ("finetune.lr", "proxy.pretrain.epochs", "select.clusters"):
            client.log_param(child.id, key, 1 + number % 2)
    told = [one.outcome.extras for one in trials_of(find("rates")[3]) if one.outcome]
    for key in ("finetune.lr", "proxy.pretrain.epochs", "select.clusters"):
        assert {extras.get(key) for extras in told} == {"1", "2"}
    assert all("select.fraction" not in extras for extras in told)
    assert top.id == find("rates")[2].id


def test_where_one_fraction_alone_was_run_there_is_no_curve_and_too_many_are_told(root):
    put_down(root, "searched", seeds=(0,))
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    children = {run.name: run.id for run in History(client.tracking_uri).children(find("searched")[2])}
    for name, identifier in children.items():
        if name.startswith(("cfs", "random", "none")) and not name.startswith("cfs 0.5"):
            client.delete_run(identifier)
    assert "How much of the pool" not in report("searched").read_text()
    put_down(root, "many", seeds=(0,), stems=[f"stem{number}" for number in range(7)])
    assert "The 14 curves over the fraction are too many" in report("many").read_text()


def test_the_page_needs_nothing_else_and_is_in_mlflow_with_its_figures(swept, page, root):
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page and "<script" not in page
    (folder,) = (root / "reports").glob("swept-*")
    assert {path.name for path in folder.iterdir()} == {"report.html", "fraction.png", "cost.png"}
    for picture in folder.glob("*.png"):
        assert min(Image.open(picture).size) > 400
    logged = {file.path for file in swept.client.list_artifacts(swept.id, "report")}
    assert logged == {"report/report.html", "report/fraction.png", "report/cost.png"}


def test_means_over_seeds_and_the_claim_are_in_the_tables(page):
    settings = {row[0]: row[1:] for row in cells(page, "setting")}
    assert settings["patchify, dino, cfs 50 %"][:3] == ["2", "42.5 ± 0.7", "52.5 ± 0.7"]
    assert settings[f"patchify, {'no pre-training'}"][:2] == ["1", f"{100 * NOTHING:.1f}"]
    claims = {row[0]: row[1:] for row in cells(page, "strategy")}
    assert claims["patchify, cfs"] == ["42.5 ± 0.7", "40.5 ± 0.7", "+2.0", "1.0", "2, 2"]
    assert claims["ics, random"][2] == "-9.0"


def test_stems_stand_side_by_side(page):
    assert "<th>patchify</th><th>ics</th>" in page
    rows = {row[0]: row[1:] for row in cells(page, "stem")}
    assert rows["dino, cfs 50 %"] == ["42.5 ± 0.7 / 52.5 ± 0.7", "47.5 ± 0.7 / 57.5 ± 0.7"]


def test_costs_have_a_front_and_what_selecting_took(page):
    front = cells(page, "on the Pareto front")
    assert [row[0] for row in front] == [
        "1. patchify, no pre-training",
        "2. ics, dino, cfs 25 %",
        "3. ics, dino, cfs 50 %",
    ]
    assert front[-1][1:] == ["47.5 ± 0.7", "3", "500"]
    assert cells(page, "stage") == [["score", "1", "0.5", "0.5"]]


def test_measured_and_published_are_two_tables_and_it_says_why(page):
    measured, published = cells(page, "measured"), cells(page, "published")
    assert [row[1] for row in measured] == ["synthetic", "synthetic"]
    assert not {row[0] for row in measured} & {row[0] for row in published}
    assert "66.1" in {row[4] for row in published}
    assert "They cannot be compared: the measured ones are on synthetic" in page


def test_a_trial_that_failed_is_told_of_with_its_error(page):
    assert cells(page, "trial")[-1] == ["lr=1e30", "loss is not finite &lt;at step 3&gt;"]


def test_the_report_is_made_again_from_mlflow_alone(swept, page, root):
    shutil.rmtree(root / "reports")
    shutil.rmtree(root / "mlartifacts")
    assert report("swept").read_text() == page


def test_a_name_or_file_that_was_not_run_is_one_line(swept, root, tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no experiment 'nobody'; known: .*swept"):
        report("nobody")
    with pytest.raises(UserError, match="no experiment 'tiny'"):
        report(str(tiny()))
    with pytest.raises(UserError, match="belong to a file"):
        report("swept", ["seed=1"])
    history = find("swept")[0]
    with pytest.raises(UserError, match="not run as the file stands"):
        latest(history, "swept", "other")
    assert latest(history, "swept", "abc")[0].id == swept.id
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no MLflow database.*RAYREID_ROOT"):
        report("swept")
    assert not (tmp_path / "empty").exists()
