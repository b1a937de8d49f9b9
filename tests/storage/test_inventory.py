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
