import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError

from rayreid.errors import UserError
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking import outage, revision
from rayreid.tracking.revision import DIRTY, git_sha
from rayreid.tracking.run import Run
from rayreid.tracking.run_note import RunNote
from rayreid.tracking.store import send, tracking_uri
from rayreid.tracking.tracker import Tracker
from recorded_run import RecordedRun

PLATFORM = Path(__file__).parents[2] / "platform"


@pytest.fixture(scope="module")
def tracker(root) -> Tracker:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker(root, "trials")


@pytest.fixture
def run(tracker) -> Run:
    return tracker.run("a run")


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    return [(entry.step, entry.value) for entry in run.client.get_metric_history(run.id, metric)]


def data_of(run: Run):
    return run.client.get_run(run.id).data


# Runs


def runs_of(tracker) -> int:
    return len(tracker.client.search_runs([tracker.experiment_id], max_results=1000))


def test_a_run_that_was_created_and_not_noted_is_found_again(tracker, tmp_path):
    note = RunNote(tmp_path / "run.json")
    lost = tracker.run("killed before it noted its id", note=note)
    lost.finish("KILLED")
    before = runs_of(tracker)
    assert note.read() is None
    found = tracker.run("killed before it noted its id", note=note)
    assert found.id == lost.id and runs_of(tracker) == before
    assert found.client.get_run(found.id).info.status == "RUNNING"
    note.write(found.id)
    assert RunNote(note.path).read() == lost.id


def test_a_run_whose_creation_got_no_answer_is_created_once(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(outage, "_POLL_SECONDS", 0.0)
    create, calls = tracker.client.create_run, []

    def unanswered(*arguments, **named):
        calls.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        create(*arguments, **named)
        raise ConnectionError("no answer")

    monkeypatch.setattr(tracker.client, "create_run", unanswered)
    before = runs_of(tracker)
    run = tracker.run("created, and not answered", note=RunNote(tmp_path / "run.json"))
    assert calls == ["0"] and os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] != "0"
    assert runs_of(tracker) == before + 1 and run.client.get_run(run.id).info.status == "RUNNING"


def test_of_several_runs_with_a_mark_one_goes_on(tracker, tmp_path):
    note = RunNote(tmp_path / "run.json")
    first = tracker.run("first", note=note)
    second = tracker.run("second")
    second.tags({"rayreid.mark": note.mark()[0]})
    elsewhere = Tracker(tracker.outboxes.parent, "another experiment")
    assert elsewhere.run("found", note=note).id == first.id
    assert second.client.get_run(second.id).info.status == "KILLED"


def test_a_run_is_finished_late_once(tracker):
    run = tracker.run("killed when it had finished")
    run.fail("no room")
    run.finish("FAILED")
    for _ in range(2):
        tracker.finish_late(run.id, {"mAP": 0.5}, 1_800_000_000.0)
    logged = run.client.get_run(run.id)
    assert history(run, "mAP") == [(0, 0.5)] and logged.info.status == "FINISHED" and "error" not in logged.data.tags
    with pytest.raises(UserError, match="does not accept the end of run 0123"):
        tracker.finish_late("0123", {"mAP": 0.5}, 1_800_000_000.0)


def test_a_mark_without_a_run_leads_to_a_new_run(tracker, tmp_path):
    note = RunNote(tmp_path / "run.json")
    assert note.mark()[1] is False
    before = runs_of(tracker)
    run = tracker.run("killed before it was created", note=note)
    assert runs_of(tracker) == before + 1 and tracker.run("again", note=note).id == run.id


def test_no_credential_is_logged(tracker):
    uri = "s3://key:hunter2@bucket/pool?secret_key=hunter2"
    run = tracker.run("a run", {"source": uri})
    run.params({"pool.root": uri})
    run.tags({"note": f"see {uri}"})
    run.dataset("pool", "0123", uri, {"images": 1}, "pool")
    run.text(f"root: {uri}", "config.yaml")
    run.fail(f"{uri} is away")
    logged = run.client.get_run(run.id)
    written = Path(run.client.download_artifacts(run.id, "config.yaml")).read_text()
    assert "hunter2" not in str(logged.to_dictionary()) + written
    assert logged.data.params["pool.root"] == "s3://***@bucket/pool?secret_key=***"
    assert logged.data.tags["error"] == "s3://***@bucket/pool?secret_key=*** is away"


def test_the_default_store_is_a_database_in_the_output_root(tracker, root):
    assert tracker.uri == f"sqlite:///{root}/mlflow.db"
    assert (root / "mlflow.db").is_file()
    found = MlflowClient(tracker.uri).get_experiment_by_name("trials")
    assert found.experiment_id == tracker.experiment_id
    assert found.artifact_location == (root / "mlartifacts").as_uri()


def test_an_experiment_is_one_of_model_training_and_a_choice_of_the_users_stays(root):
    tracker = Tracker(root, "chosen")
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    tracker.client.set_experiment_tag(tracker.experiment_id, "mlflow.experimentKind", "regression")
    tracker.client.set_experiment_tag(tracker.experiment_id, "mlflow.sharedViewState.results", "of an older version")
    Tracker(root, "chosen")
    again = tracker.client.get_experiment(tracker.experiment_id).tags
    assert again == {**tags, "mlflow.experimentKind": "regression"}


def test_a_run_says_where_it_comes_from(tracker, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/rayreid", "run", "my experiment.yaml"])
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    top = tracker.run("sweep")
    monkeypatch.setattr(
        sys, "argv", ["default_worker.py", "--node-ip-address=127.0.0.1"]
    )  # a trial's process, of Ray's
    child = Run(tracker, top.id).child("trial")
    for run in (top, child, child.child("stage")):
        tags = data_of(run).tags
        assert tags["mlflow.source.name"] == "rayreid run 'my experiment.yaml'"
        assert (tags["mlflow.source.type"], tags["mlflow.user"]) == ("LOCAL", "ada")
        assert tags.get("mlflow.source.git.commit") == (git_sha() or "").removesuffix(DIRTY)


def test_a_user_without_a_name_has_none(tracker, monkeypatch):
    def unknown():
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert "mlflow.user" not in data_of(tracker.run("in a container")).tags


def test_two_commands_may_begin_at_once_where_there_is_nothing_yet(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    program = (
        "import sys; from pathlib import Path; from rayreid.tracking.tracker import Tracker\n"
        "Tracker(Path(sys.argv[1]), 'a')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "outputs")]
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["mlflow.db"]


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(tracker, monkeypatch):
    found = iter([None, tracker.client.get_experiment_by_name("trials")])
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda client, name: next(found))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert Tracker(tracker.outboxes.parent, "trials").experiment_id == tracker.experiment_id


def test_the_environment_s_store_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(tmp_path) == "http://server:5000"


def test_a_store_is_opened_again_under_the_same_experiment(tracker, root, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Tracker(root, "trials").experiment_id == tracker.experiment_id
    assert Tracker(root, "others").experiment_id != tracker.experiment_id


def test_runs_nest(tracker):
    parent = tracker.run("sweep")
    child = parent.child("trial", {"stage": "pretrain", "fraction": 0.5, "nothing": None})
    grandchild = child.child("stage")
    assert data_of(child).tags["mlflow.parentRunId"] == parent.id
    assert data_of(grandchild).tags["mlflow.parentRunId"] == child.id
    assert "mlflow.parentRunId" not in data_of(parent).tags
    tags = data_of(child).tags
    assert (tags["stage"], tags["fraction"], tags["mlflow.runName"]) == ("pretrain", "0.5", "trial")
    assert "nothing" not in tags
    assert tags.get("git_sha") == git_sha()


def test_params_metrics_and_tags(run):
    many = {f"section.key{n}": n for n in range(120)}
    run.params({**many, "pretrain.lr": 5e-4, "long": "x" * 9000, "list": [1, 2], "none": None})
    run.tags({"backbone": "vit_tiny", "seed": 3})
    run.metrics({"mAP": 0.5, "rank1": 1}, step=7)
    data = data_of(run)
    assert data.params["section.key119"] == "119"
    assert (data.params["pretrain.lr"], data.params["list"], data.params["none"]) == ("0.0005", "[1, 2]", "None")
    assert data.params["long"] == "x" * 6000
    assert (data.tags["backbone"], data.tags["seed"]) == ("vit_tiny", "3")
    assert data.metrics == {"mAP": 0.5, "rank1": 1.0}
    assert history(run, "mAP") == [(7, 0.5)]


def test_a_history_is_logged_with_its_own_steps_and_times(run):
    rows = [{"step": step, "time": 1000.5 + step, "loss": 1 / (1 + step), "lr": 0.1} for step in range(600)]
    for _ in range(2):  # after a kill, too
        send(run.client, run.id, "rows", rows)
    entries = run.client.get_metric_history(run.id, "loss")
    assert [(e.step, e.value, e.timestamp) for e in entries] == [
        (step, 1 / (1 + step), 1000500 + 1000 * step) for step in range(600)
    ]
    assert set(data_of(run).metrics) == {"loss", "lr"}


def test_datasets_and_artifacts(run, tmp_path):
    run.dataset("pool", "f" * 40, "/data/pool", {"images": 7}, "pretrain")
    [entry] = run.client.get_run(run.id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("pool", "f" * 36)
    assert json.loads(entry.dataset.profile) == {"images": 7}
    assert json.loads(entry.dataset.source) == {"uri": "/data/pool"}
    assert [tag.value for tag in entry.tags] == ["pretrain"]
    (tmp_path / "weights.txt").write_text("w")
    run.file(tmp_path / "weights.txt", "weights")
    run.text("a: 1\n", "config.yaml")
    run.figure(Figure(figsize=(1, 1)), "figures/loss.png")
    listed = {
        file.path for folder in (None, "weights", "figures") for file in run.client.list_artifacts(run.id, folder)
    }
    assert {"weights/weights.txt", "config.yaml", "figures/loss.png"} <= listed


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_ends_as_its_block_does(run, error, status):
    try:
        with run:
            if error:
                raise error
    except (ValueError, KeyboardInterrupt) as caught:
        assert caught is error
    assert run.client.get_run(run.id).info.status == status
    assert data_of(run).tags.get("error") == ("no" if status == "FAILED" else None)


def test_a_run_is_continued_by_a_later_process(tracker, run):
    run.metrics({"loss": 1.0}, step=0)
    run.finish("FAILED")
    continued = tracker.resume(run.id)
    assert continued.id == run.id
    assert run.client.get_run(run.id).info.status == "RUNNING"
    continued.metrics({"loss": 0.5}, step=1)
    assert history(run, "loss") == [(0, 1.0), (1, 0.5)]


def test_a_continued_run_knows_the_command_that_began_it_without_asking_again(tracker, run, monkeypatch):
    continued = tracker.resume(run.id)
    monkeypatch.setattr(continued.tracker.client, "get_run", lambda run_id: pytest.fail("the store may be away"))
    assert continued.source() == run.source() and run.source()["mlflow.source.name"]


def test_a_run_that_this_store_does_not_know_is_none(tracker):
    assert tracker.resume("0" * 32) is None


def test_a_server_that_does_not_answer_is_one_line_that_says_where_to_look(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as caught:
        Tracker(tmp_path)
    message = str(caught.value)
    assert "http://127.0.0.1:9" in message and "MLFLOW_TRACKING_URI" in message
    assert "\n" not in message


@pytest.mark.parametrize("uri", ["foo://bar", "{folder}/mlruns", "postgresql://user@127.0.0.1:9/runs"])
def test_a_store_of_another_kind_is_one_line_that_says_where_to_look(monkeypatch, tmp_path, uri):
    uri = uri.format(folder=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setitem(sys.modules, "psycopg", None)  # the driver of that database, if it is installed here
    with pytest.raises(UserError) as caught:
        Tracker(tmp_path)
    message = str(caught.value)
    assert uri in message and "MLFLOW_TRACKING_URI" in message
    assert "\n" not in message


def test_a_database_that_does_not_answer_is_one_line_too(monkeypatch, tmp_path):
    def away(self, *args):
        raise OperationalError("SELECT 1", {}, Exception("could not connect\nis the server running?"))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///unused.db")
    monkeypatch.setattr(MlflowClient, "__init__", away)
    with pytest.raises(UserError, match=r"could not connect.*MLFLOW_TRACKING_URI") as caught:
        Tracker(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_experiment_that_was_deleted_is_one_line_that_says_how_to_restore_it(tracker, root, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    gone = Tracker(root, "gone").experiment_id
    tracker.client.delete_experiment(gone)
    with pytest.raises(UserError, match=rf"'gone'.*restore --experiment-id {gone}\b.*another name"):
        Tracker(root, "gone")
    tracker.client.restore_experiment(gone)
    assert Tracker(root, "gone").experiment_id == gone


def test_the_commit_is_the_checkout_s_or_none(monkeypatch):
    sha = git_sha()
    assert sha is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", sha)

    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert git_sha() is None


def test_a_commit_is_marked_if_files_of_the_package_differ_from_it(tmp_path, monkeypatch):
    package = tmp_path / "checkout/platform/package"
    (package / "tracking").mkdir(parents=True)
    (package / "code.py").write_text("1")
    git = ["git", "-C", tmp_path / "checkout", "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(revision, "__file__", str(package / "tracking/revision.py"))
    clean = git_sha()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "checkout/ledger.csv").write_text("changed after the commit, as a result is")
    assert git_sha() == clean
    (package / "code.py").write_text("2")
    assert git_sha() == clean + DIRTY


# Delivering what workers wrote


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "metrics.jsonl"


def steps(run: RecordedRun) -> list[float]:
    return [row["step"] for row in run.rows]


def deliver(feed: MetricsFeed, run: RecordedRun | Run) -> list[dict[str, float]]:
    """Read what is new, and deliver it as the process that follows the journal does; return what arrived."""
    feed.read()
    return feed.deliver(run.history if isinstance(run, RecordedRun) else partial(send, run.client, run.id, "rows"))


def append(path: Path, *steps: int) -> None:
    with path.open("a") as stream:
        stream.writelines(json.dumps({"step": step, "loss": 1.0 / (1 + step), "time": 100.0}) + "\n" for step in steps)


def test_each_step_arrives_once_over_a_restart(tracker, run, path):
    feed = MetricsFeed(path, run.id)
    assert deliver(feed, run) == []
    append(path, 0, 1)
    assert [row["step"] for row in deliver(feed, run)] == [0, 1]
    assert deliver(feed, run) == []
    append(path, 2)
    deliver(feed, run)
    append(path, 3, 4)  # written, not delivered: the driver is killed here
    again = MetricsFeed(path, tracker.resume(run.id).id)
    assert [row["step"] for row in deliver(again, run)] == [3, 4]
    append(path, 5)
    deliver(again, run)
    assert deliver(MetricsFeed(path, run.id), run) == []
    assert history(run, "loss") == [(step, 1.0 / (1 + step)) for step in range(6)]
    assert "time" not in data_of(run).metrics


def test_steps_that_a_restarted_worker_runs_again_are_not_delivered_again(path):
    run = RecordedRun()
    feed = MetricsFeed(path, run.id)
    append(path, 0, 1, 2)
    deliver(feed, run)
    append(path, 1, 2, 3)
    deliver(feed, run)
    append(path, 4, 5, 3, 4, 5, 6)  # all read at once
    deliver(feed, run)
    assert steps(run) == [0, 1, 2, 3, 4, 5, 6]


def test_rows_of_one_step_complete_one_another(path, tracker):
    run = tracker.run("probed")
    feed = MetricsFeed(path, run.id)
    append(path, 0, 1)
    Journal(path).append({"step": 1, "probe": 0.5})
    deliver(feed, run)
    append(path, 2)
    Journal(path).append({"step": 1, "probe": 0.5})  # again, by a restarted worker
    assert [set(row) for row in deliver(feed, run)] == [{"step", "time", "loss"}]
    Journal(path).append({"step": 2, "probe": 0.7})  # written, not delivered: the driver is killed here
    deliver(MetricsFeed(path, tracker.resume(run.id).id), run)
    assert history(run, "probe") == [(1, 0.5), (2, 0.7)]
    assert [step for step, _ in history(run, "loss")] == [0, 1, 2]


def test_a_half_written_last_line_waits_until_it_is_whole(path):
    run = RecordedRun()
    feed = MetricsFeed(path, run.id)
    append(path, 0)
    with path.open("a") as stream:
        stream.write('{"step": 1, "lo')
    assert [row["step"] for row in deliver(feed, run)] == [0]
    assert deliver(MetricsFeed(path, "another"), RecordedRun("another")) != []
    with path.open("a") as stream:
        stream.write('ss": 0.5, "time": 1.5}\n')
    assert [row["step"] for row in deliver(feed, run)] == [1]
    assert steps(run) == [0, 1]


def test_rows_that_could_not_be_delivered_are_delivered_later(path):
    run = RecordedRun()
    feed = MetricsFeed(path, run.id)
    append(path, 0, 1)
    run.away = True
    with pytest.raises(ConnectionError):
        deliver(feed, run)
    run.away = False
    append(path, 2)
    deliver(feed, run)
    assert steps(run) == [0, 1, 2]


def test_another_run_receives_everything(path):
    append(path, 0, 1)
    gone = RecordedRun("of a store that is gone")
    deliver(MetricsFeed(path, gone.id), gone)
    run = RecordedRun("new")
    deliver(MetricsFeed(path, run.id), run)
    assert steps(run) == [0, 1]
