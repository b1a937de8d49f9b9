"""Checkpoints of the training state: written atomically, with checksums, and searched for the newest intact one."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rayreid import forms
from rayreid.errors import UserError, one_line
from rayreid.files import check_guards, checksum, remove_temporaries, replacing, sync_file, sync_folder
from rayreid.state_files import DamagedFileError, read_json

_NUMBER = re.compile(r"[0-9]{4,18}")


class Stateful(Protocol):
    """An object whose state can be restored, e.g. an `nn.Module`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore the state."""


@dataclass(frozen=True)
class Milestones:
    """Checkpoints that are kept for good: that of every `every`-th epoch, `folder/NNNN.pt` (number of epochs done)."""

    folder: Path
    every: int
    steps_per_epoch: int

    def path(self, epoch: int) -> Path | None:
        """Return the path for the state after that many epochs; None if it is not to be kept."""
        return None if epoch % self.every else self.folder / f"{epoch:04d}.pt"

    def steps(self) -> dict[Path, int]:
        """Return the existing milestones, with the number of optimizer steps done in each."""
        return {path: epoch * self.steps_per_epoch for path, epoch in _numbered(self.folder).items()}


class Checkpoints:
    """The checkpoints of one training run.

    Each is a file `NNNNNNNN.pt` (the number of optimizer steps done) with a checksum file that is written after it. A
    checkpoint without a matching checksum is skipped in favour of the one before it.

    Args:
        folder: Folder of the checkpoints; made when the first is written, in a folder that exists.
        keep: Number of newest checkpoints that are kept.
        milestones: Checkpoints that are also kept, for good. They need no extra writing, because they are hard links.
    """

    def __init__(self, folder: Path, keep: int = 2, milestones: Milestones | None = None):
        self.folder = folder
        self.keep = keep
        self.milestones = milestones

    def save(self, step: int, state: dict[str, Any], epoch: int | None = None) -> None:
        """Write the state after `step` optimizer steps (the end of epoch `epoch`, if given), and remove the oldest.

        Later checkpoints are removed too: they were damaged, or this run would have resumed from them.
        """
        self.folder.mkdir(exist_ok=True)  # no parents: a run whose folder has vanished must not go on unnoticed
        check_guards(path := self._path(step))  # before anything is removed
        remove_temporaries(self.folder)  # states are large
        with replacing(path, sync=False) as temporary:  # the seal tells whether the bytes reached the disk
            with temporary.open("wb") as stream:  # given a path, torch loses the reason for which it cannot write
                torch.save(state, stream)
            content = checksum(temporary)
        stays = self.milestones.path(epoch) if self.milestones and epoch is not None else None
        if stays is not None:  # before the seal, with which a restart would resume after this epoch
            _link(path, stays)
            _write_seal(stays, content)
            _settle(stays)
        _write_seal(path, content)
        check_guards(path)
        newest_first = sorted(_numbered(self.folder), reverse=True)
        place = newest_first.index(path)
        if removed := newest_first[:place] + newest_first[place + self.keep :]:
            # A power failure must not leave none at all. Most of the oldest that stays is on the disk already.
            _settle(newest_first[place : place + self.keep][-1])
        for other in removed:
            _seal(other).unlink(missing_ok=True)
            other.unlink(missing_ok=True)

    def newest(self) -> int:
        """Return the optimizer steps done in the newest intact state; 0 if there is none."""
        return next((step for path, step in self._newest_first() if _whole(path)), 0)

    def sealed(self) -> int:
        """Return the optimizer steps done in the newest state that has a seal, without reading it; 0 if there is none.

        A resumed training compares the seal, too, and falls back on an older state where it does not fit.
        """
        return next((step for path, step in self._newest_first() if _seal(path).is_file()), 0)

    def load(self, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Return the state after `step` optimizer steps.

        Raises:
            UserError: The state does not exist or is not intact.
        """
        path = next((path for path, done in self._newest_first() if done == step and _whole(path)), None)
        if path is None:
            raise UserError(
                f"{self._path(step)}: this checkpoint is missing or damaged as this worker sees it, yet worker 0 chose "
                "it; the output root (RAYREID_ROOT) must be storage that all workers share"
            )
        return torch.load(path, map_location=device, weights_only=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.pt"

    def _newest_first(self) -> list[tuple[Path, int]]:
        """Return all states, including the milestones, which are the last resort."""
        steps = _numbered(self.folder)
        steps |= self.milestones.steps() if self.milestones else {}
        return sorted(steps.items(), key=lambda item: item[1], reverse=True)


def _link(path: Path, other: Path) -> None:
    """Give the bytes of a checkpoint a second name, which is not sealed yet."""
    other.parent.mkdir(exist_ok=True)
    for former in (_seal(other), other):
        former.unlink(missing_ok=True)
    other.hardlink_to(path)


def _write_seal(path: Path, content: str) -> None:
    with replacing(_seal(path), sync=False) as temporary:
        temporary.write_text(json.dumps({"blake2b": content}))


def _settle(path: Path) -> None:
    """Bring a checkpoint, its seal and their names to the disk."""
    for one in (path, _seal(path)):
        if one.exists():
            sync_file(one)
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)


def restore(module: Stateful, state: dict[str, Any], source: Path) -> None:
    """Load a module's complete state.

    Raises:
        UserError: The state belongs to another architecture.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = one_line(error, "all", limit=300)
        raise UserError(f"{source}: a checkpoint of another architecture ({reason})") from None


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def _whole(path: Path) -> bool:
    try:
        return read_json(_seal(path), forms.record({"blake2b": forms.text}))["blake2b"] == checksum(path)
    except (OSError, DamagedFileError):
        return False


def _numbered(folder: Path) -> dict[Path, int]:
    """Return the files in a folder whose names are numbers, with these."""
    return {path: int(path.stem) for path in folder.glob("*.pt") if _NUMBER.fullmatch(path.stem) and path.is_file()}
