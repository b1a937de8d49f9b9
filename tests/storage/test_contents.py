"""Complete means whole: what `artifact.json` records, and what is noticed when files change afterwards."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk
from rayreid.errors import UserError
from rayreid.files import checksum
from rayreid.storage import contents
from rayreid.storage import damage as damage_module
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import DamagedError, Entry, read_record, verify
from rayreid.storage.damage import set_aside
from rayreid.storage.lease import LeaseLostError

FILES = {"cmc.npy": None, "queries.parquet": b"queries", "figures/cmc.png": b"a picture", "metrics.jsonl": b"{}\n"}


def evaluation(root: Path, number: int = 0) -> Artifact:
    return Artifact(root, "evaluate", 1, {"number": number})


@pytest.fixture
def made(tmp_path) -> Artifact:
    """A complete artifact with files in folders, and with such that are not part of it."""
    artifact = evaluation(tmp_path)
    with artifact.writing() as folder:
        write(folder)
        for name in ("checkpoints/1.pt", "epochs/0001.pt", "run.json", "delivered.json", ".hidden", "a/.b.1.tmp"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"passing")
        artifact.finish({"mAP": 0.5})
    return artifact


def write(folder: Path) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    for name, content in FILES.items():
        if content is not None:
            (folder / name).write_bytes(content)
    np.save(folder / "cmc.npy", np.linspace(0, 1, 20))


def afresh() -> None:
    """Forget which artifacts this process found whole, as another process would."""
    contents._whole.clear()


def test_the_record_names_every_file_with_its_size_and_checksum(made):
    record = read_record(made.path)
    assert set(record.files) == set(FILES)
    for name, entry in record.files.items():
        path = made.path / name
        assert entry == Entry(path.stat().st_size, checksum(path))
    assert json.loads((made.path / "artifact.json").read_text())["files"]["queries.parquet"]["size"] == 7
    assert verify(made.path) == []


def test_all_files_reach_the_disk_before_the_record_and_its_folder_after_it(tmp_path, monkeypatch):
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def synced(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def linked(source: Path, target: Path) -> None:
        steps.append(f"link {Path(target).name}")
        link(source, target)

    artifact = evaluation(tmp_path)
    artifact.path.mkdir(parents=True)
    write(artifact.path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    artifact.finish({})
    finished = steps.index("link artifact.json")
    assert {Path(name).name for name in FILES} | {"figures"} <= set(steps[:finished])
    assert steps[finished - 1].startswith(".artifact.json.")
    assert steps[finished + 1 :] == [artifact.id, "evaluate", tmp_path.name]


def test_files_with_known_checksums_are_not_read_again(tmp_path):
    artifact = evaluation(tmp_path)
    artifact.path.mkdir(parents=True)
    write(artifact.path)
    artifact.finish({}, {"cmc.npy": "known"})
    assert read_record(artifact.path).files["cmc.npy"].checksum == "known"
    assert verify(artifact.path) == ["cmc.npy"]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def removed(path: Path) -> None:
    path.unlink()


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [emptied, cut, removed, replaced_by_a_folder])
def test_a_lost_journal_does_not_make_a_finished_result_again(made, damage, caplog):
    damage(made.path / "metrics.jsonl")
    afresh()
    assert made.complete and verify(made.path) == ["metrics.jsonl"] and not caplog.records


def test_a_file_behind_a_link_that_leads_nowhere_is_not_damage(made, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (made.path / "figures").rename(elsewhere)
    (made.path / "figures").symlink_to(elsewhere)
    afresh()
    assert made.complete
    elsewhere.rename(tmp_path / "unmounted")
    afresh()
    with pytest.raises(UserError, match=rf"figures: leads to {elsewhere}, which is not there; mount it, and run again"):
        _ = made.complete


def test_who_lost_the_lease_while_it_read_the_files_moves_nothing(made, monkeypatch):
    emptied(made.path / "cmc.npy")
    afresh()

    def another_takes_over(folder: Path) -> list[str]:
        (folder / "lease.json").unlink()
        return ["cmc.npy"]

    monkeypatch.setattr(damage_module, "verify", another_takes_over)
    with pytest.raises(LeaseLostError), made.writing():
        pass
    assert (made.path / "cmc.npy").exists() and (made.path / "artifact.json").exists()


@pytest.mark.parametrize("name", [name for name in FILES if name != "metrics.jsonl"])
@pytest.mark.parametrize("damage", [emptied, cut, removed, replaced_by_a_folder])
def test_a_lost_file_is_named_in_one_line_and_hides_no_other_artifact(made, tmp_path, name, damage, caplog):
    """As storage leaves it that did not keep what it had promised, after a loss of power."""
    other = evaluation(tmp_path, 1)
    shutil.copytree(made.path, other.path)
    record = other.path / "artifact.json"
    record.write_text(record.read_text().replace(made.id, other.id))
    damage(made.path / name)
    afresh()
    assert not made.complete and other.complete and other.facts == {"mAP": 0.5}
    reason = rf"{name} (is missing|has \d+ bytes instead of \d+)"
    with pytest.raises(DamagedError, match=rf"^{made.path}: this artifact is damaged: {reason}; restore .*run its exp"):
        _ = made.facts
    assert verify(made.path) == [name]
    assert not made.complete
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_journal_to_which_a_lost_writer_appended_is_whole(made):
    with (made.path / "metrics.jsonl").open("ab") as stream:
        stream.write(b"{}\n")
    with (made.path / "queries.parquet").open("ab") as stream:
        stream.write(b"{}\n")
    afresh()
    with pytest.raises(DamagedError, match=r"queries\.parquet has 10 bytes instead of 7"):
        _ = made.facts
    assert verify(made.path) == ["queries.parquet"]


@pytest.mark.parametrize("name", ["checkpoints", "epochs", "run.json", "delivered.json"])
def test_what_may_change_after_completion_is_not_compared(made, name):
    path = made.path / name
    shutil.rmtree(path) if path.is_dir() else path.write_text("another")
    afresh()
    assert made.complete and verify(made.path) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{}",
        "[" * 100_000,
        "\0" * 500,
        '{"recipe": [], "facts": {}}',
        '{"recipe": {"stage": "evaluate", "fields": {}, "inputs": {}}, "facts": 3}',
        '{"recipe": {"stage": "evaluate", "fields": {}, "inputs": {}}, "facts": {}, "files": {"../x": {}}}',
        '{"recipe": {"stage": "evaluate", "fields": {}, "inputs": {}}, "facts": {}, "files": {"a": {"size": "3"}}}',
        '{"recipe": {"stage": "evaluate", "fields": {}, "inputs": {}}, "facts": {}, "files": [3]}',
        '{"id": "0", "recipe": {"stage": "evaluate", "fields": {}, "inputs": {}}, "facts": {}}',
    ],
)
def test_a_damaged_record_is_named_in_one_line(made, content):
    (made.path / "artifact.json").write_text(content)
    assert not made.complete
    with pytest.raises(
        DamagedError, match=r"this artifact is damaged: artifact\.json .*run its experiment again"
    ) as error:
        _ = made.facts
    assert "\n" not in str(error.value)


def test_an_artifact_of_an_earlier_version_is_read_as_before(made):
    path = made.path / "artifact.json"
    content = json.loads(path.read_text())
    del content["files"]
    path.write_text(json.dumps(content))
    (made.path / "cmc.npy").write_bytes(b"")
    assert made.complete and made.facts == {"mAP": 0.5} and read_record(made.path).files is None


def test_storage_that_does_not_answer_is_no_damage(made, monkeypatch):
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name != "artifact.json":
            return read(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(UserError, match="the storage does not answer") as error:
            _ = made.complete
        assert not isinstance(error.value, DamagedError)
        with pytest.raises(UserError, match="the storage does not answer"), made.writing():
            pass
    assert made.complete and verify(made.path) == []


def test_the_next_writer_finds_only_what_is_whole(made, caplog):
    (made.path / "cmc.npy").write_bytes(b"")
    picture = made.path / "figures/cmc.png"
    picture.write_bytes(picture.read_bytes()[::-1])  # of the same size
    afresh()
    with made.writing() as folder:
        assert not made.complete
        assert sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".") == [
            "delivered.json",
            "lease.json",
            "metrics.jsonl",
            "queries.parquet",
            "run.json",
        ]
        assert not list((folder / "figures").iterdir())
        write(folder)
        made.finish({"mAP": 0.6})
    (aside,) = made.path.parent.glob("*.damaged-*")
    kept = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
    assert kept == ["artifact.json", "cmc.npy", "figures/cmc.png"]
    assert made.facts == {"mAP": 0.6} and verify(made.path) == []
    assert f"what is damaged is moved to {aside.name}, which you can delete" in caplog.text


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text.replace('"id": "', '"id": "another')])
def test_without_a_record_of_its_own_no_file_is_trusted(made, damage):
    record = made.path / "artifact.json"
    record.write_text(damage(record.read_text()))
    with made.writing() as folder:
        assert {path.name for path in folder.iterdir()} == {"lease.json", ".writers.json", ".hidden"}
    (aside,) = made.path.parent.glob("*.damaged-*")
    assert {"artifact.json", "cmc.npy", "figures"} <= {path.name for path in aside.iterdir()}


def test_a_process_that_is_killed_while_it_moves_files_leaves_the_artifact_damaged(made, monkeypatch):
    for name in ("cmc.npy", "queries.parquet"):
        (made.path / name).write_bytes(b"")
    rename, moved = Path.rename, []

    def killed(path: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            set_aside(made.path)
    afresh()
    with pytest.raises(DamagedError):
        read_record(made.path)
    set_aside(made.path)
    assert not (made.path / "artifact.json").exists() and not (made.path / "queries.parquet").exists()


def test_checkpoints_that_are_kept_and_folders_in_folders_reach_the_disk_before_the_record(tmp_path):
    folder = tmp_path / "stage" / "id"
    with disturbed(Disk(tmp_path)) as disk:
        for name in ("epochs/0001.pt", "figures/inner/curve.png"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text(name)
        assert list(contents.settle(folder, {})) == ["figures/inner/curve.png"]
        contents.settle_names(folder)
        left = [disk.left(loss) for loss in LOSSES.values()]
    assert all(one == left[0] for one in left) and left[0]["stage/id/epochs/0001.pt"] == b"epochs/0001.pt"
