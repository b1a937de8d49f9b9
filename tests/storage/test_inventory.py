import errno
import shutil
from pathlib import Path

import pytest

from rayreid.errors import UserError
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import RECORD
from rayreid.storage.inventory import Inventory, size_of


def finish(root, stage="pretrain", **fields):
    artifact = Artifact(root, stage, 1, fields)
    with artifact.writing() as folder:
        (folder / "weights").write_bytes(bytes(1000))
        artifact.finish({"images": 3})
    return artifact


def test_complete_unfinished_and_damaged_artifacts_are_told_apart(tmp_path):
    whole, cut = finish(tmp_path, seed=1), finish(tmp_path, seed=2)
    (cut.path / RECORD).write_text("")
    begun = Artifact(tmp_path, "finetune", 1, {})
    begun.path.mkdir(parents=True)
    found = Inventory(tmp_path)
    assert set(found.stored) == {whole.id, cut.id, begun.id}
    assert [one.id for one in found.complete("pretrain")] == [whole.id] and not found.complete("finetune")
    assert found.record(whole.id).facts == {"images": 3} and found.record("000000000000") is None
    assert "it is empty" in found.stored[cut.id].fault and not found.stored[begun.id].fault
    assert str(found.stored[whole.id]) == str(whole) and found.stored[whole.id].size > 1000


def test_a_root_that_does_not_exist_has_none(tmp_path):
    assert Inventory(tmp_path / "none").stored == {} and not (tmp_path / "none").exists()


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="it is no folder; set RAYREID_ROOT"):
        Inventory(tmp_path / "file")


def test_links_and_other_folders_are_left_out(tmp_path):
    elsewhere = finish(tmp_path / "elsewhere")
    root = tmp_path / "root"
    (root / "pretrain").mkdir(parents=True)
    (root / "pretrain" / elsewhere.id).symlink_to(elsewhere.path)
    (root / "finetune").symlink_to(elsewhere.path.parent)
    (root / "mine" / "notes").mkdir(parents=True)
    assert Inventory(root).stored == {}
    (root / "mine" / "large").symlink_to(elsewhere.path)
    assert size_of(root / "mine") < 1000


def test_a_copy_of_a_stage_s_folder_hides_nothing(tmp_path):
    whole, begun = finish(tmp_path), Artifact(tmp_path, "pretrain", 1, {"seed": 2})
    begun.path.mkdir()
    for name in ("copy_of_pretrain", "pretrain_backup"):
        shutil.copytree(tmp_path / "pretrain", tmp_path / name)
    found = Inventory(tmp_path)
    assert found.stored[whole.id].folder == whole.path and found.complete("pretrain") == [found.stored[whole.id]]
    assert [one for one in found.folders if one.id == whole.id] == [found.stored[whole.id]]
    assert {one.stage for one in found.folders if one.id == begun.id} == {
        "pretrain",
        "copy_of_pretrain",
        "pretrain_backup",
    }


def test_a_complete_artifact_comes_before_an_unfinished_copy_of_it(tmp_path):
    whole = finish(tmp_path)
    (tmp_path / "copy" / whole.id).mkdir(parents=True)
    assert Inventory(tmp_path).stored[whole.id].folder == whole.path


def test_the_record_of_another_artifact_is_damage(tmp_path):
    whole = finish(tmp_path)
    shutil.copytree(whole.path, whole.path.with_name("0123456789ab"))
    assert f"is that of {whole.id}" in Inventory(tmp_path).stored["0123456789ab"].fault


def test_folders_that_cannot_be_listed_are_told(tmp_path, monkeypatch):
    finish(tmp_path)
    (tmp_path / "private").mkdir()
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "private":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = Inventory(tmp_path)
    assert len(found.folders) == 1 and "denied" in found.unreadable[tmp_path / "private"]
    with pytest.raises(UserError, match="it cannot be listed"):
        Inventory(tmp_path / "private")
