"""List, details and deletion of artifacts, as their commands do it."""

import json
import shutil

import pytest

from rayreid.cli import main
from rayreid.config.loading import dump, load_experiment, rows
from rayreid.housekeeping.references import look
from rayreid.pipeline.graph import plan
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.removal import take_aside


@pytest.fixture
def command(outputs, capsys):
    """Runs `rayreid artifacts …`; returns its exit status and what it printed on both streams."""

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["artifacts", *arguments])
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return command


def finish(artifact, **facts):
    with artifact.writing() as folder:
        (folder / "weights").write_bytes(bytes(2000))
        artifact.finish(
            {"finished": "2026-01-02T03:04:05Z", "git_sha": "abc", **facts}, None, {"command": "rayreid run x"}
        )
    return artifact


@pytest.fixture
def orphans(outputs):
    """Three complete artifacts that no experiment uses, one made of another."""
    pool = finish(Artifact(outputs, "ingest", 1, {}))
    weights = finish(Artifact(outputs, "pretrain", 1, {"pretrain": {"epochs": 3}}, {"pool": pool}))
    return pool, weights, finish(Artifact(outputs, "select", 1, {}, {"pool": pool}))


@pytest.fixture
def used(outputs, tiny):
    """An experiment of which everything is complete."""
    experiment = load_experiment(tiny())
    record(outputs, experiment)
    return [finish(one) for one in lineage(plan(rows(experiment)["tiny"], outputs)).values()]


def record(outputs, experiment):
    (outputs / "experiments" / "tiny-1").mkdir(parents=True)
    (outputs / "experiments" / "tiny-1" / "config.yaml").write_text(dump(experiment))


def test_the_list_has_sizes_and_users(command, orphans, used):
    status, out, _ = command("list")
    assert status == 0 and f"{len(orphans) + len(used)} artifacts" in out
    line = next(line for line in out.splitlines() if line.startswith(str(orphans[1])))
    assert "complete" in line and "2026-01-02 03:04" in line and line.rstrip().endswith("nothing")
    entries = json.loads(command("list", "--json")[1])
    pool = next(one for one in entries if one["artifact"] == str(orphans[0]))
    assert pool["used_by"] == [f"{orphans[1]} (pool)", f"{orphans[2]} (pool)"] and pool["bytes"] > 2000


def test_an_empty_root_says_so(command, outputs):
    assert command("list")[1] == f"{outputs}: there is no artifact\n"
    assert "there is no artifact in" in command("show", "abc")[2]
    assert not outputs.exists()


def test_an_artifact_is_found_by_its_id_or_the_beginning_of_it(command, orphans):
    for name in (str(orphans[1]), orphans[1].id, orphans[1].id[:5], str(orphans[1].path)):
        status, out, _ = command("show", name)
        assert status == 0 and out.startswith(str(orphans[1]))
        assert "rayreid run x" in out and "pretrain.epochs" in out and orphans[0].id in out and "nothing" in out
    assert json.loads(command("show", orphans[0].id, "--json")[1])["made_by"] == {"command": "rayreid run x"}


def test_an_unknown_id_is_one_line_with_near_matches(command, orphans):
    wrong = f"pretrain/{orphans[1].id[:-1]}{'0' if orphans[1].id[-1] != '0' else '1'}"
    status, out, err = command("show", wrong)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert f"there is no such artifact in {orphans[1].root}; did you mean {orphans[1]}" in err
    assert "rayreid artifacts list shows all" in command("show", "~~")[2]


def test_several_that_begin_alike_are_named(command, orphans, monkeypatch):
    monkeypatch.setattr("rayreid.housekeeping.artifact_list._LEAST_PREFIX", 0)
    assert "several artifacts begin so" in command("show", "")[2]


def test_only_what_nothing_uses_is_deleted(command, orphans, used):
    status, out, _ = command("gc", "--yes")
    assert status == 0 and out.count("deleted ") == 3 and "freed" in out
    assert not any(one.path.exists() for one in orphans) and all(one.complete for one in used)
    assert out.index(f"deleted {orphans[1]}") < out.index(f"deleted {orphans[0]}"), "users before what they use"
    assert "nothing to delete" in command("gc", "--yes")[1]


def test_nothing_is_deleted_without_agreement(command, orphans, monkeypatch):
    assert "would delete" in command("gc", "--dry-run")[1]
    monkeypatch.setattr("typer.confirm", lambda question: False)
    assert "to delete" in command("gc")[1]
    assert all(one.complete for one in orphans)


def test_what_a_live_process_holds_stays_with_what_it_was_made_of(command, orphans):
    with orphans[1].writing():
        out = command("gc", "--yes")[1]
    assert f"kept {orphans[1]}" in out and orphans[0].complete and not orphans[2].path.exists()


def test_what_an_unfinished_artifact_may_need_is_not_deleted(command, orphans, outputs):
    Artifact(outputs, "finetune", 1, {}).path.mkdir(parents=True)
    status, _, err = command("gc", "--yes")
    assert status == 2 and len(err.splitlines()) == 1 and "nothing is deleted while it is not known" in err
    assert all(one.complete for one in orphans)


def test_an_unfinished_artifact_keeps_what_its_experiment_uses(command, used):
    used[-1].path.joinpath("artifact.json").unlink()
    assert "nothing to delete" in command("gc", "--yes")[1] and all(one.complete for one in used[:-1])


def test_what_was_taken_up_while_the_question_waited_stays(command, orphans, outputs, tiny, monkeypatch):
    def agree(question):
        (outputs / "finetune" / "0123456789ab").mkdir(parents=True)
        return True

    monkeypatch.setattr("typer.confirm", agree)
    assert "nothing is deleted" in command("gc")[2] and all(one.complete for one in orphans)


def test_links_out_of_the_root_are_not_followed(command, orphans, outputs, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    orphans[1].path.parent.rename(elsewhere)
    orphans[1].path.parent.symlink_to(elsewhere)
    command("gc", "--yes")
    assert (elsewhere / orphans[1].id / "artifact.json").exists()
    assert orphans[1].id not in look()[0].stored


def test_what_an_experiment_names_by_its_path_stays(command, orphans, outputs, tiny):
    pool, weights, subset = orphans
    adopted = finish(Artifact(outputs, "ingest", 1, {"root": str(pool.path)}))
    experiment = load_experiment(
        tiny(select={"strategy": "cfs", "fraction": 0.5, "list": str(adopted.path / "list.txt")})
    )
    record(outputs, experiment)
    out = command("gc", "--yes")[1]
    assert adopted.complete and pool.complete, "its images are read where they are"
    assert f"deleted {weights}" in out and f"deleted {subset}" in out


def test_the_store_whose_images_another_one_reads_stays(command, orphans, outputs, tiny):
    pool, _, _ = orphans
    adopted = Artifact(outputs, "ingest", 1, {"root": "elsewhere"})
    with adopted.writing() as folder:
        (folder / "manifest.json").write_text(json.dumps({"origin": str(pool.path)}))
        adopted.finish({})
    user = finish(Artifact(outputs, "select", 1, {"mine": 1}, {"pool": adopted}))
    with user.writing():
        out = command("gc", "--yes")[1]
    assert f"kept {adopted}" in out and f"kept {pool}" in out and pool.complete and adopted.complete


@pytest.fixture
def during(monkeypatch):
    """Has something happen once the given number of artifacts was moved aside."""

    def during(number, happen):
        moved = []

        def take(*arguments, **options):
            moved.append(take_aside(*arguments, **options))
            if len(moved) == number:
                happen()
            return moved[-1]

        monkeypatch.setattr("rayreid.housekeeping.garbage.take_aside", take)

    return during


@pytest.mark.parametrize("number", range(1, 6))
def test_what_a_run_that_begins_during_the_deletion_needs_stays(command, outputs, tiny, during, number):
    experiment = load_experiment(tiny())
    made = [finish(one) for one in lineage(plan(rows(experiment)["tiny"], outputs)).values()]
    during(number, lambda: record(outputs, experiment))
    out = command("gc", "--yes")[1]
    assert all(one.complete for one in made) and out.count("kept") == len(made) and "0 B freed" in out
    assert all(path.name in {one.id for one in made} for path in outputs.glob("[!e]*/*")), "nothing is left aside"


def test_nothing_is_deleted_once_it_is_not_known_what_something_needs(command, orphans, outputs, during):
    during(2, lambda: (outputs / "finetune" / "0123456789ab").mkdir(parents=True))
    status, out, err = command("gc", "--yes")
    assert status == 2 and "nothing is deleted" in err and "deleted " not in out
    assert all(one.complete for one in orphans)


def test_what_another_run_makes_anew_meanwhile_is_not_overwritten(command, orphans, outputs, during):
    def taken_up():
        with orphans[1].writing() as folder:
            (folder / "weights").write_bytes(b"new")
        (outputs / "experiments" / "tiny-1").mkdir(parents=True)

    during(3, taken_up)
    status, out, _ = command("gc", "--yes")
    assert status == 2 and f"{orphans[1]} could not be put back; its files are in " in out
    assert (orphans[1].path / "weights").read_bytes() == b"new" and orphans[0].complete and orphans[2].complete


def test_a_copy_of_a_folder_of_artifacts_is_not_offered(command, orphans, outputs):
    backup = outputs / "pretrain_backup"
    shutil.copytree(orphans[1].path.parent, backup)
    assert f"would delete  {orphans[1]}" in command("gc", "--dry-run")[1] and "backup" not in command("list")[1]
    command("gc", "--yes")
    assert (backup / orphans[1].id / "artifact.json").exists() and not orphans[1].path.exists()


ODD = [None, [1], {"a": [1]}, "[/x]", True, -5, 10**400, float("nan"), float("inf"), "\u001b[2J"]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_values_in_a_record_are_shown(command, orphans, value):
    path = orphans[0].path / "artifact.json"
    content = json.loads(path.read_text())
    for section, names in {
        "facts": ("finished", "seconds", "git_sha", "run"),
        "made_by": ("command", "host", "versions"),
    }.items():
        content[section].update(dict.fromkeys(names, value))
    content["recipe"] |= {"version": value, "fields": {"a": value}}
    path.write_text(json.dumps(content))
    for arguments in (["list"], ["list", "--json"], ["show", orphans[0].id], ["show", orphans[0].id, "--json"]):
        status, out, _ = command(*arguments)
        assert status == 0 and orphans[0].id in out and "\u001b" not in out


@pytest.mark.parametrize("value", [value for value in ODD if not isinstance(value, str)], ids=repr)
def test_a_record_with_an_input_that_is_no_id_is_damaged(command, orphans, value):
    path = orphans[1].path / "artifact.json"
    content = json.loads(path.read_text())
    content["recipe"]["inputs"]["pool"] = value
    path.write_text(json.dumps(content))
    status, _, err = command("gc", "--yes")
    assert status == 2 and "an input is no id" in err and len(err.splitlines()) == 1
    assert orphans[0].complete and orphans[2].complete and "damaged" in command("list")[1]


def test_what_a_held_artifact_needs_indirectly_stays_whatever_its_folder(command, orphans, outputs):
    model = finish(Artifact(outputs, "finetune", 1, {}, {"weights": orphans[1]}))
    cell = finish(Artifact(outputs, "evaluate", 1, {}, {"model": model}))
    with cell.writing():
        command("gc", "--yes")
    assert all(one.complete for one in (cell, model, *orphans[:2])) and not orphans[2].path.exists()
