import pytest

from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import LEASE, RECORD
from rayreid.storage.removal import delete_artifact, put_back, take_aside


@pytest.fixture
def made(tmp_path):
    artifact = Artifact(tmp_path / "root", "pretrain", 1, {})
    with artifact.writing() as folder:
        (folder / "figures").mkdir()
        (folder / "figures" / "loss.png").write_bytes(b"drawn")
        artifact.finish({})
    return artifact


def test_a_complete_artifact_is_deleted_with_its_folder(made):
    assert delete_artifact(made.path, complete=True)
    assert list(made.path.parent.iterdir()) == []


def test_what_is_not_as_expected_is_left(made):
    assert not delete_artifact(made.path, complete=False)
    assert made.complete and not (made.path / LEASE).exists()
    (made.path / RECORD).unlink()
    assert not delete_artifact(made.path, complete=True) and (made.path / "figures").exists()


def test_what_links_lead_to_stays(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    (made.path / "link").symlink_to(tmp_path / "mine")
    assert delete_artifact(made.path, complete=True) and (tmp_path / "mine" / "kept").exists()


def test_a_deletion_that_is_killed_leaves_nothing_complete(made, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("rayreid.storage.removal.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_artifact(made.path, complete=True)
    assert not made.complete
    assert [path.name.partition(".")[2].partition("-")[0] for path in made.path.parent.iterdir()] == ["damaged"]


def test_what_a_live_process_holds_is_left(made, monkeypatch):
    monkeypatch.setattr("rayreid.storage.removal.PATIENCE_SECONDS", 0.0)
    with made.writing():
        assert not delete_artifact(made.path, complete=True)
        assert made.complete


def test_what_was_taken_aside_is_put_back(made):
    aside = take_aside(made.path, complete=True)
    assert aside is not None and not made.complete and (aside / "figures" / "loss.png").exists()
    assert put_back(aside, made.path) and made.complete and not made.damage
    assert list(made.path.parent.iterdir()) == [made.path] and not (made.path / LEASE).exists()


def test_what_is_made_anew_is_not_overwritten(made):
    aside = take_aside(made.path, complete=True)
    with made.writing() as folder:
        assert not put_back(aside, made.path)
        (folder / "new").touch()
    assert not put_back(aside, made.path) and (aside / RECORD).exists() and (made.path / "new").exists()
