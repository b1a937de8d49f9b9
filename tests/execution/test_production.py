"""Making artifacts: once, whole, and continued after an interruption; without Ray or MLflow."""

import errno
import io
import os
import shutil
import threading
from datetime import UTC, datetime

import pytest
from rich.console import Console

from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.execution import production
from rayreid.execution.production import StageContext, produce
from rayreid.files import TEMPORARY
from rayreid.storage import contents
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import LEASE, WRITERS
from rayreid.storage.lease_place import Holder, here, start_of
from rayreid.tracking.revision import git_sha
from recorded_run import RecordedRun


@pytest.fixture
def make(tmp_path):
    def make(job, beside=None, **inputs):
        artifact = Artifact(tmp_path, "stage", 1, {"answer": 42}, inputs, job, auxiliary=beside or {})
        return produce(artifact, RecordedRun(), Screen(Console(file=io.StringIO())), {})

    return make


def test_what_is_complete_is_not_made_again(make):
    calls = []
    for _ in range(2):
        artifact = make(lambda work: calls.append(work.folder) or {"images": 3})
    assert calls == [artifact.path]
    facts = artifact.facts
    assert facts.pop("seconds") >= 0
    assert datetime.fromisoformat(facts.pop("finished")) <= datetime.now(UTC)
    assert facts == {"images": 3, "resumed": False, "run": "r", "git_sha": git_sha()}


def test_who_waits_for_another_run_is_told(tmp_path):
    artifact = Artifact(tmp_path, "stage", 1, {}, {}, lambda work: {"images": 1})
    told = threading.Event()

    class Said(io.StringIO):
        def write(self, text):
            written = super().write(text)
            told.set()
            return written

    said = Said()
    with artifact.writing():
        second = threading.Thread(target=produce, args=(artifact, RecordedRun(), Screen(Console(file=said)), {}))
        second.start()
        assert told.wait(10)
        assert f"{artifact}: waiting for another run that is producing it" in said.getvalue() and not artifact.complete
    second.join(20)
    assert artifact.complete


@pytest.mark.parametrize("which", ["metrics", "finish"])
def test_what_a_killed_run_could_not_record_is_recorded_by_the_next_once(tmp_path, which):
    def killed(*values, **options):
        raise KeyboardInterrupt

    artifact = Artifact(tmp_path, "stage", 1, {}, {}, lambda work: {"images": 3, "model": "vit"})
    screen = Screen(Console(file=io.StringIO()))
    first, second, third = RecordedRun(), RecordedRun(), RecordedRun()
    first.metrics = first.finish = killed
    with pytest.raises(KeyboardInterrupt):
        produce(artifact, first, screen, {})
    assert artifact.complete
    setattr(second, which, killed)
    with pytest.raises(KeyboardInterrupt):
        produce(artifact, second, screen, {})
    for _ in range(2):
        produce(artifact, third, screen, {})
    at = datetime.fromisoformat(artifact.facts["finished"]).timestamp()
    assert third.values == {"images": 3, "seconds": artifact.facts["seconds"]}
    assert third.times == [at] and third.ends == [("FINISHED", at)]


def test_a_run_that_is_still_recording_is_not_recorded_by_another(tmp_path):
    artifact = Artifact(tmp_path, "stage", 1, {}, {}, lambda work: {"images": 3})
    other, begun, ready = RecordedRun(), threading.Event(), threading.Event()

    class Recording(RecordedRun):
        def metrics(self, values, step=0, at=None):
            begun.set()
            assert ready.wait(10)
            super().metrics(values, step, at)

    run = Recording()
    first = threading.Thread(target=produce, args=(artifact, run, Screen(Console(file=io.StringIO())), {}))
    first.start()
    assert begun.wait(10) and artifact.complete
    lease, parent = artifact.path / LEASE, os.getppid()
    own = lease.read_text()
    lease.write_text(Holder("0" * 32, here(), parent, start_of(parent)).text())  # it lives, and keeps nobody waiting
    produce(artifact, other, Screen(Console(file=io.StringIO())), {})
    lease.write_text(own)
    assert other.times == []
    ready.set()
    first.join(10)
    assert len(run.times) == 1
    assert sorted(path.name for path in artifact.path.iterdir()) == ["artifact.json", "run.json"]


@pytest.mark.parametrize("refused", [UserError("the store does not know the run"), OSError(errno.ENOSPC, "full")])
def test_what_cannot_be_recorded_late_is_tried_again_and_keeps_nobody_from_reading(tmp_path, refused):
    def refuse(*values):
        raise refused

    artifact, run = Artifact(tmp_path, "stage", 1, {}, {}, lambda work: {"images": 3}), RecordedRun()
    screen = Screen(Console(file=io.StringIO()))
    produce(artifact, run, screen, {})
    (artifact.path / WRITERS).write_text('{"number": 1}')
    run.tracker.finish_late, known = refuse, run.tracker.finish_late
    assert produce(artifact, run, screen, {}).complete and (artifact.path / WRITERS).exists()
    run.tracker.finish_late = known
    produce(artifact, run, screen, {})
    assert run.ends and not (artifact.path / WRITERS).exists()


def test_a_group_of_figures_is_logged_with_its_name(tmp_path):
    run = RecordedRun()
    artifact = Artifact(
        tmp_path, "stage", 1, {}, {}, lambda work: {"n": 1, "diagnosis": {"rank": 0.5}, "start": {"a": 1}}
    )
    produce(artifact, run, Screen(Console(file=io.StringIO())), {})
    assert set(run.values) == {"n", "diagnosis.rank", "seconds"}


@pytest.mark.parametrize("kept", [True, False])
def test_the_note_of_a_run_is_kept_if_the_storage_refused(tmp_path, kept):
    """Its end may not be recorded either."""

    def refuse(work):
        raise OSError(errno.ENOSPC, "No space left on device", str(work.folder)) if kept else UserError("no")

    artifact = Artifact(tmp_path, "stage", 1, {}, {}, refuse)
    with pytest.raises(UserError):
        produce(artifact, RecordedRun(), Screen(Console(file=io.StringIO())), {})
    assert (artifact.path / "run.json").exists() is kept


def test_what_is_left_to_record_keeps_nobody_from_reading(tmp_path, monkeypatch):
    artifact, run = Artifact(tmp_path, "stage", 1, {}, {}, lambda work: {"images": 3}), RecordedRun()
    screen = Screen(Console(file=io.StringIO()))
    produce(artifact, run, screen, {})
    (artifact.path / WRITERS).write_text('{"number": 1}')
    monkeypatch.setattr(
        production.os, "access", lambda path, mode: False
    )  # root may write wherever the storage lets it
    produce(artifact, run, screen, {})
    assert len(run.times) == 1 and (artifact.path / WRITERS).exists()


def test_an_interrupted_one_goes_on_and_says_so(make):
    def first(work):
        (work.folder / "half").write_text("done")
        (work.folder / "checkpoints").mkdir()
        raise KeyboardInterrupt

    def second(work):
        return {"found": (work.folder / "half").read_text()}

    with pytest.raises(KeyboardInterrupt):
        make(first)
    artifact = make(second)
    assert artifact.facts["found"] == "done" and artifact.facts["resumed"] is True
    assert not (artifact.path / "checkpoints").exists()


def test_a_full_disk_is_named_and_leaves_no_temporary(make, tmp_path):
    def fill(work):
        (work.folder / "shards").mkdir()
        (work.folder / "shards" / "done").write_text("kept")
        (work.folder / "shards" / f".half.0123{TEMPORARY}").write_text("of a worker that was stopped")
        raise OSError(errno.ENOSPC, "No space left on device", str(work.folder / "shards" / "next"))

    with pytest.raises(UserError, match=r"/shards: no room is left on this disk .*run the same command again"):
        make(fill)
    [folder] = tmp_path.glob("stage/*")
    assert sorted(path.name for path in folder.rglob("*")) == [".writers.json", "done", "run.json", "shards"]
    assert make(lambda work: {}).facts["resumed"] is True


def test_what_a_killed_run_left_unfinished_is_removed_first(make, tmp_path):
    def kill(work):
        (work.folder / f".half.0123{TEMPORARY}").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(kill)
    assert list(tmp_path.rglob(f"*{TEMPORARY}"))
    make(lambda work: {"left": [str(path) for path in work.folder.rglob(f"*{TEMPORARY}")]})
    assert not list(tmp_path.rglob(f"*{TEMPORARY}"))


def test_a_folder_that_vanishes_meanwhile_is_named(make, tmp_path):
    def vanish(work):
        shutil.rmtree(work.folder)
        (work.folder / "result").write_text("")

    with pytest.raises(UserError, match=f"{tmp_path}/stage/.*: this folder has vanished while it was in use"):
        make(vanish)
    assert make(lambda work: {}).complete


def test_one_that_was_refused_before_it_began_leaves_nothing(make, tmp_path):
    def refuse(work):
        raise UserError("no")

    with pytest.raises(UserError):
        make(refuse)
    assert list(tmp_path.glob("stage/*")) == []
    assert make(lambda work: {}).facts["resumed"] is False


def test_what_was_damaged_since_is_made_again_from_what_is_left_of_it(make, tmp_path, caplog):
    def job(work):
        for name in ("first", "second"):
            if not (work.folder / name).exists():
                calls.append(name)
                (work.folder / name).write_text(name)
        return {}

    calls: list[str] = []
    artifact = make(job)
    (artifact.path / "first").write_text("")
    contents._whole.clear()  # as in another process
    assert make(job).facts["resumed"] is True
    assert calls == ["first", "second", "first"] and (artifact.path / "first").read_text() == "first"
    assert (artifact.path / "artifact.json").exists() and len(list(tmp_path.glob("stage/*.damaged-*"))) == 1
    assert f"{artifact.path}: first has 0 bytes instead of 5; what is damaged is moved to" in caplog.text


def test_files_whose_checksums_a_stage_knows_are_not_read_again(make):
    def job(work):
        (work.folder / "shard").write_text("…")
        work.checksums["shard"] = "known"
        return {}

    assert contents.read_record(make(job).path).files["shard"].checksum == "known"


def test_what_stands_beside_is_made_first_and_only_for_what_is_not_complete(make, tmp_path):
    calls = []

    def watched():
        return Artifact(tmp_path, "watched", 1, {}, job=lambda work: calls.append("watched") or {})

    made = make(lambda work: calls.append(work.input("target")) or {}, {"target": watched()})
    assert calls == ["watched", watched().path]
    shutil.rmtree(watched().path)
    assert make(lambda work: {}, {"target": watched()}).id == made.id == make(lambda work: {}).id
    assert calls == ["watched", watched().path]


def test_what_auto_came_to_is_shown_in_a_line_and_logged(tmp_path):
    run, shown = RecordedRun(), io.StringIO()
    work = StageContext(Artifact(tmp_path, "stage", 1, {}), tmp_path, run, Screen(Console(file=shown)))
    work.resolved({"lr": 1e-3, "local_size": (64, 32)}, {"probe_every": 2, "gpu": False})
    assert shown.getvalue() == "    lr 0.001, local_size (64, 32), probe_every 2, gpu False\n"
    assert run.parameters == {f"resolved.{name}": value for name, value in [("lr", 1e-3), ("local_size", (64, 32))]}
    assert run.tagged == {"resolved.probe_every": 2, "resolved.gpu": False}


def test_what_a_run_that_was_killed_after_finishing_did_not_remove_goes_with_the_next(make):
    artifact = make(lambda work: {})
    for name in contents.SCRATCH:
        (artifact.path / name / "inner").mkdir(parents=True)
    (artifact.path / contents.WRITERS).write_text("{}")
    (artifact.path / "epochs").mkdir()
    assert make(lambda work: {}).complete
    assert sorted(path.name for path in artifact.path.iterdir()) == ["artifact.json", "epochs", "run.json"]
