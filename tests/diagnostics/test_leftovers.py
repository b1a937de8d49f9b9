"""What is left in an output root: what is found, what is cleared up, and what nobody touches."""

import importlib
import json
import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rayreid.console import Screen
from rayreid.diagnostics.doctor import left_in
from rayreid.diagnostics.leftovers import leftovers
from rayreid.errors import UserError
from rayreid.storage import contents
from rayreid.storage.artifacts import Artifact
from rayreid.storage.lease import Lease
from rayreid.storage.lease_place import Holder, here
from rayreid.tracking.entries import entry
from rayreid.tracking.outbox import Outbox

module = importlib.import_module("rayreid.diagnostics.doctor")
RUN = "0" * 32
TAGS = {"uri": "sqlite:///x", "kind": "tags", "what": {"a": "b"}}


@pytest.fixture(scope="module")
def ended() -> int:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def unfinished(root: Path, fields: int = 1) -> Path:
    """The folder of an artifact that was being made, an hour and more ago."""
    folder = Artifact(root, "pretrain", 1, {"n": fields}).path
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/00000010.pt").write_bytes(bytes(2**20))
    (folder / "run.json").write_text(json.dumps({"run": RUN}))
    return folder


def aged(path: Path) -> Path:
    old = time.time() - 7200
    os.utime(path, (old, old))
    return path


def held(folder: Path, pid: int) -> Path:
    lease = folder / "lease.json"
    lease.write_text(Holder("a" * 32, here(), pid, 1).text())
    return lease


def texts(root: Path, **options) -> list[str]:
    return [one.text for one in leftovers(root, **options)]


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_root_without_leftovers_is_quiet(tmp_path):
    with Artifact(tmp_path, "pretrain", 1, {}).writing() as folder:
        (folder / "metrics.jsonl").touch()
        assert texts(tmp_path) == []
    Artifact(tmp_path, "pretrain", 1, {}).finish({})
    Outbox(tmp_path / "undelivered" / RUN).put(TAGS)
    assert texts(tmp_path) == []


def test_an_entry_that_cannot_be_read_is_moved_aside_and_the_others_stay(tmp_path):
    box = Outbox(tmp_path / "undelivered" / RUN, entry)
    for _ in range(3):
        box.put(TAGS)
    poisoned = sorted(box.folder.iterdir())[1]
    poisoned.write_text("[]")
    (found,) = leftovers(tmp_path)
    assert f"{poisoned}: an entry for MLflow that cannot be read (not an object)" in found.text
    assert poisoned.exists() and found.mend()
    assert len(list(box.entries())) == 2 and len(list(box.folder.glob("*.json.damaged-*"))) == 1
    assert [one.does for one in leftovers(tmp_path)] == [""]


def test_old_unfinished_files_are_removed_and_new_ones_are_not(tmp_path):
    (tmp_path / "experiments/e").mkdir(parents=True)
    for name in (
        f".config.yaml.{'c' * 32}.tmp",
        f".lease-{'a' * 32}",
        ".seen-abc",
        f".mlflow-lease.json.{'b' * 32}.clock",
    ):
        aged_one = tmp_path / "experiments/e" / name
        aged_one.write_text("x")
        aged(aged_one)
    new = tmp_path / f".results.json.{'d' * 32}.tmp"
    new.touch()
    kept = tmp_path / "experiments/e/config.yaml"
    kept.touch()
    aged(kept)
    (found,) = leftovers(tmp_path)
    assert found.text.startswith("4 unfinished files of writers that are gone")
    assert found.mend()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [new.name, kept.name]


def test_the_lease_of_a_process_that_is_gone_is_removed(tmp_path, ended):
    folder = unfinished(tmp_path)
    lease = held(folder, ended)
    found = next(one for one in leftovers(tmp_path) if "lease" in one.text)
    assert found.text == f"{lease}: the lease of a process that is gone"
    assert found.mend() and not lease.exists() and (folder / "checkpoints/00000010.pt").exists()


def test_an_old_lease_of_another_machine_is_removed_and_a_newer_one_is_not(tmp_path):
    old, new = unfinished(tmp_path, 1), unfinished(tmp_path, 2)
    for folder in (old, new):
        (folder / "lease.json").write_text(Holder("a" * 32, "another", 1, 1).text())
    aged(old / "lease.json")
    found = [one for one in leftovers(tmp_path) if "lease" in one.text]
    assert [one.text for one in found] == [f"{old / 'lease.json'}: the lease of a process that is gone"]
    assert found[0].mend() and not (old / "lease.json").exists() and (new / "lease.json").exists()


def test_a_lease_that_is_taken_up_meanwhile_stays(tmp_path, ended):
    folder = unfinished(tmp_path)
    held(folder, ended)
    found = next(one for one in leftovers(tmp_path) if "lease" in one.text)
    with Lease(folder / "lease.json"):
        lease = Lease(folder / "lease.json", poll=0.01)
        assert not lease.clear(0.05) and not lease.take_free()
    assert found.mend()


def test_an_unfinished_artifact_is_kept_unless_it_is_asked_for(tmp_path):
    folder = unfinished(tmp_path)
    (found,) = leftovers(tmp_path)
    assert found.text.startswith(f"pretrain/{folder.name}: an unfinished artifact, 1.0 MiB; the same command continues")
    assert found.mend is None and "--discard unfinished" in found.asked
    (found,) = leftovers(tmp_path, discard=frozenset({"unfinished"}))
    assert found.mend() and not folder.exists()


def test_an_artifact_with_nothing_in_it_is_deleted(tmp_path):
    folder = Artifact(tmp_path, "score", 1, {}).path
    folder.mkdir(parents=True)
    (folder / ".writers.json").write_text(json.dumps({"number": 1}))
    (found,) = leftovers(tmp_path)
    assert found.text == f"score/{folder.name}: an artifact that was begun, with nothing in it"
    assert found.mend() and not folder.exists()


@pytest.mark.parametrize("note", [{"run": RUN}, {"run": None, "mark": RUN}])
def test_a_note_of_a_run_that_may_not_have_ended_is_kept(tmp_path, note):
    folder = Artifact(tmp_path, "score", 1, {}).path
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(note))
    (found,) = leftovers(tmp_path)
    assert "an unfinished artifact" in found.text and found.mend is None


def test_an_artifact_that_is_finished_or_begun_meanwhile_is_not_deleted(tmp_path):
    folder = unfinished(tmp_path)
    artifact = Artifact(tmp_path, "pretrain", 1, {"n": 1})
    (found,) = leftovers(tmp_path, discard=frozenset({"unfinished"}))
    artifact.finish({})
    assert not found.mend() and (folder / "checkpoints/00000010.pt").exists()
    assert not (folder / "lease.json").exists()


def test_the_user_s_own_folders_are_not_examined(tmp_path):
    """A dataset may lie below the output root, and its files may be called as ours are."""
    for folder in ("datasets", "datasets/mine", f"datasets/mine/{'0' * 12}"):
        (tmp_path / folder).mkdir()
        for name in (f".a.{'f' * 32}.tmp", "run.json", "delivered.json", "lease.json", "x.damaged-12345678"):
            (tmp_path / folder / name).write_text("[")
            aged(tmp_path / folder / name)
    before = everything(tmp_path)
    assert list(left_in(tmp_path, True, frozenset({"unfinished", "damaged"}))) == []
    assert everything(tmp_path) == before


def test_nothing_below_a_held_lease_is_touched(tmp_path):
    """Whatever lies there, and whatever is asked for."""
    folder = unfinished(tmp_path)
    for name in (f".backbone.{'e' * 32}.tmp", "delivered.json", "run.json", "x.damaged-12345678"):
        (folder / name).write_text("[")
        aged(folder / name)
    with Lease(folder / "lease.json"):
        before = everything(tmp_path)
        assert list(left_in(tmp_path, True, frozenset({"unfinished", "damaged"}))) == []
        assert everything(tmp_path) == before
    assert len(texts(tmp_path)) == 5


def test_damaged_notes_are_moved_aside(tmp_path):
    folder = unfinished(tmp_path)
    (folder / "run.json").write_text('{"run": "../../x"}')
    (folder / "delivered.json").write_text("")
    experiment = tmp_path / "experiments" / "e-1"
    experiment.mkdir(parents=True)
    (experiment / f"run-{RUN}.json").write_text("null")
    found = [one for one in leftovers(tmp_path) if "it is damaged" in one.text]
    assert len(found) == 3 and all(one.mend() for one in found)
    assert len(list(tmp_path.rglob("*.damaged-*"))) == 3


def test_what_was_moved_aside_is_deleted_on_demand_alone(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/run.json.damaged-0123abcd").write_text("x")
    (tmp_path / "pretrain/0123456789ab.damaged-0123abcd").mkdir(parents=True)
    (tmp_path / "pretrain/0123456789ab.damaged-0123abcd/weights").write_bytes(bytes(2**20))
    (found,) = leftovers(tmp_path)
    assert found.text.startswith("2 files that were moved aside as damaged, 1.0 MiB") and found.mend is None
    (found,) = leftovers(tmp_path, discard=frozenset({"damaged"}))
    assert found.mend() and list(tmp_path.rglob("*damaged*")) == []


def test_the_doctor_lists_and_with_repair_clears_up(tmp_path, ended):
    folder = unfinished(tmp_path)
    lease = held(folder, ended)
    listed = list(left_in(tmp_path, repair=False))
    assert [one.mark for one in listed] == ["note", "note"] and lease.exists()
    assert listed[0].text == f"{lease}: the lease of a process that is gone; rayreid doctor --repair removes it"
    assert listed[1].text.endswith(
        "the same command continues it; rayreid doctor --repair --discard unfinished deletes it"
    )
    mended = list(left_in(tmp_path, repair=True))
    assert [one.mark for one in mended] == ["ok", "note"] and not lease.exists()
    assert mended[0].text.endswith("cleared up (removes it)") and folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repair": True, "discard": ["all"]}, "--discard all: name unfinished or damaged"),
        ({"discard": ["damaged"]}, "--discard is for rayreid doctor --repair"),
    ],
)
def test_options_that_ask_for_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        module.doctor(Screen(Console(file=StringIO())), **options)


def test_what_a_complete_artifact_no_longer_needs_is_removed_and_a_damaged_one_keeps_it(tmp_path):
    for stage in ("finetune", "pretrain"):
        artifact = Artifact(tmp_path, stage, 1, {})
        (artifact.path / "checkpoints").mkdir(parents=True)
        (artifact.path / "weights").write_text("weights")
        artifact.finish({})
    (artifact.path / "weights").write_text("")
    contents._whole.clear()
    (found,) = leftovers(tmp_path)
    assert "1 folders that complete artifacts no longer need" in found.text and found.mend()
    assert [path.parent.parent.name for path in tmp_path.glob("*/*/checkpoints")] == ["pretrain"]
