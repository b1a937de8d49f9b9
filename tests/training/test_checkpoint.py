import json

import pytest
import torch
from torch import nn

from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk, write_tree
from rayreid.errors import UserError
from rayreid.training import checkpoint
from rayreid.training.checkpoint import Checkpoints, Milestones, restore


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    (tmp_path / "run").mkdir()
    return Checkpoints(tmp_path / "run" / "checkpoints")


def state(step: int) -> dict:
    return {"step": step, "method": {"weight": torch.full((3,), float(step))}}


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_without_any_there_is_nothing_to_load(checkpoints):
    assert checkpoints.newest() == 0


def test_the_newest_comes_back(checkpoints):
    for step in (9, 10, 100):
        checkpoints.save(step, state(step))
    assert checkpoints.newest() == 100
    loaded = checkpoints.load(100)
    assert loaded["step"] == 100
    assert torch.equal(loaded["method"]["weight"], torch.full((3,), 100.0))


def test_only_the_newest_are_kept(checkpoints):
    for step in range(1, 6):
        checkpoints.save(step, state(step))
    assert names(checkpoints) == ["00000004.json", "00000004.pt", "00000005.json", "00000005.pt"]
    more = Checkpoints(checkpoints.folder, keep=3)
    more.save(6, state(6))
    assert len(names(more)) == 6


def with_milestones(checkpoints: Checkpoints) -> Checkpoints:
    return Checkpoints(checkpoints.folder, milestones=Milestones(checkpoints.folder.parent / "epochs", 2, 10))


def test_every_so_many_epochs_one_stays(checkpoints):
    checkpoints = with_milestones(checkpoints)
    for step in range(5, 65, 5):
        checkpoints.save(step, state(step), epoch=None if step % 10 else step // 10)
    epochs = sorted(path.name for path in checkpoints.milestones.folder.iterdir())
    assert epochs == [f"{epoch}.{end}" for epoch in ("0002", "0004", "0006") for end in ("json", "pt")]
    assert torch.load(checkpoints.milestones.folder / "0004.pt")["step"] == 40
    assert names(checkpoints) == ["00000055.json", "00000055.pt", "00000060.json", "00000060.pt"]


def test_a_milestone_is_the_last_resort(checkpoints):
    checkpoints = with_milestones(checkpoints)
    checkpoints.save(20, state(20), epoch=2)
    for step in (25, 35):
        checkpoints.save(step, state(step))
        (checkpoints.folder / f"{step:08d}.pt").write_bytes(b"half")
    assert checkpoints.newest() == 20
    assert checkpoints.load(20)["step"] == 20
    (checkpoints.milestones.folder / "0002.pt").write_bytes(b"half")
    assert checkpoints.newest() == 0


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_goes_on_from_before_damaged_ones_keeps_its_own(checkpoints, keep):
    checkpoints = with_milestones(checkpoints)
    checkpoints.keep = keep
    checkpoints.save(20, state(20), epoch=2)
    for step in (24, 25):
        checkpoints.save(step, state(step))
        (checkpoints.folder / f"{step:08d}.pt").write_bytes(b"half")
    for step in (21, 22, 23):
        checkpoints.save(step, state(step))
        assert checkpoints.newest() == step
    assert len(names(checkpoints)) == 2 * keep


def test_an_epoch_may_be_saved_again(checkpoints):
    checkpoints = with_milestones(checkpoints)
    checkpoints.save(20, state(20), epoch=2)
    checkpoints.save(20, state(7), epoch=2)
    assert torch.load(checkpoints.milestones.folder / "0002.pt")["step"] == 7


def test_what_a_killed_process_left_half_written_goes_with_the_next_save(checkpoints):
    checkpoints.save(1, state(1))
    (checkpoints.folder / "00000002.99.tmp").write_bytes(b"half")
    checkpoints.save(2, state(2))
    assert not list(checkpoints.folder.glob("*.tmp"))


def test_a_step_may_be_saved_again(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.save(1, state(7))
    assert checkpoints.load(checkpoints.newest())["step"] == 7


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(checkpoints, keep):
    checkpoints.save(3, state(3))
    checkpoints.save(4, state(4))
    newest = checkpoints.folder / "00000004.pt"
    newest.write_bytes(newest.read_bytes()[:keep])
    assert checkpoints.newest() == checkpoints.load(3)["step"] == 3


def test_a_checkpoint_with_a_flipped_bit_is_passed_over(checkpoints):
    checkpoints.save(3, state(3))
    checkpoints.save(4, state(4))
    newest = checkpoints.folder / "00000004.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert checkpoints.newest() == checkpoints.load(3)["step"] == 3


@pytest.mark.parametrize("seal", [None, "", "{", "{}", json.dumps({"blake2b": "0"})])
def test_a_checkpoint_without_its_checksum_is_passed_over(checkpoints, seal):
    checkpoints.save(3, state(3))
    checkpoints.save(4, state(4))
    path = checkpoints.folder / "00000004.json"
    path.unlink() if seal is None else path.write_text(seal)
    assert checkpoints.newest() == checkpoints.load(3)["step"] == 3


def test_an_interrupted_save_leaves_the_one_before(checkpoints, monkeypatch):
    checkpoints.save(3, state(3))

    def interrupt(content, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(4, state(4))
    assert checkpoints.newest() == checkpoints.load(3)["step"] == 3


def test_a_run_whose_folder_has_vanished_does_not_make_it_again(checkpoints):
    checkpoints.folder.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        checkpoints.save(1, state(1))
    assert not checkpoints.folder.parent.exists()


def test_a_checkpoint_runs_no_code(checkpoints):
    class Code:
        def __reduce__(self):
            return print, ("code was run",)

    checkpoints.save(1, {"step": 1, "method": Code()})
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoints.load(1)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_a_step_that_is_asked_for_and_not_whole_is_refused(checkpoints, damage):
    checkpoints.save(3, state(3))
    checkpoints.save(4, state(4))
    damage(checkpoints.folder / "00000004.pt")
    with pytest.raises(UserError, match=r"00000004\.pt.*RAYREID_ROOT"):
        checkpoints.load(4)
    assert checkpoints.load(3)["step"] == 3


def test_another_architecture_is_refused_with_the_place_in_one_line(checkpoints):
    module = nn.Linear(3, 2)
    restore(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, checkpoints.folder)
    assert module.weight.sum() == 6
    for other in (nn.Linear(4, 2), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(UserError) as caught:
            restore(module, other.state_dict(), checkpoints.folder)
        assert str(checkpoints.folder) in str(caught.value)
        assert "another architecture" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_power_leaves_a_checkpoint_although_older_ones_are_removed(checkpoints, tmp_path, keep, loss):
    root = checkpoints.folder.parent
    with disturbed(Disk(root)) as disk:
        for step in range(1, keep + 3):
            Checkpoints(checkpoints.folder, keep).save(step, state(step))
        write_tree(tmp_path / "found", disk.left(LOSSES[loss]))
    newest = Checkpoints(tmp_path / "found" / "checkpoints", keep).newest()
    assert newest >= 3 and Checkpoints(tmp_path / "found" / "checkpoints", keep).load(newest)["step"] == newest


def test_a_milestone_is_there_before_the_checkpoint_from_which_a_run_would_go_on_after_it(checkpoints, monkeypatch):
    checkpoints = with_milestones(checkpoints)
    write_seal = checkpoint._write_seal

    def only_the_milestone_s(path, content):
        if path.parent == checkpoints.folder:
            raise KeyboardInterrupt
        write_seal(path, content)

    monkeypatch.setattr(checkpoint, "_write_seal", only_the_milestone_s)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(20, state(20), epoch=2)
    assert names(checkpoints) == ["00000020.pt"] and checkpoints.newest() == 20
    assert checkpoints.load(20)["step"] == 20


@pytest.mark.parametrize("loss", LOSSES)
def test_a_milestone_is_kept_for_good_once_a_later_checkpoint_is_begun(checkpoints, loss):
    checkpoints = with_milestones(checkpoints)
    with disturbed(Disk(checkpoints.folder.parent)) as disk:
        checkpoints.save(20, state(20), epoch=2)
        left = disk.left(LOSSES[loss])
    assert left["epochs/0002.pt"] == (checkpoints.milestones.folder / "0002.pt").read_bytes()
    assert left["epochs/0002.json"] == (checkpoints.milestones.folder / "0002.json").read_bytes()
