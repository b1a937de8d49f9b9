"""Training state on disk: written atomically, checksummed, the newest whole one found again."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch

from rayreid.errors import UserError


class Stateful(Protocol):
    """What has a state that can be put back, e.g. an `nn.Module`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take it back."""


class Checkpoints:
    """The checkpoints of one training run, in one folder.

    Each is `NNNNNNNN.pt` (the number of optimizer steps done) with a checksum beside it, which is written after it:
    a checkpoint without one, or whose bytes do not match, is passed over in favour of the one before.

    Args:
        folder: where they lie; made when the first is written.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` optimizer steps, then drop the oldest beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(step)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        seal = json.dumps({"blake2b": _checksum(temporary)})
        temporary.replace(path)
        temporary.write_text(seal)
        temporary.replace(_seal(path))
        for old in self._newest_first()[self.keep :]:
            _seal(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)

    def newest(self) -> int:
        """Optimizer steps done in the newest whole state; 0 where there is none."""
        return next((int(path.stem) for path in self._newest_first() if self._whole(path)), 0)

    def load(self, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The state after `step` optimizer steps.

        Raises:
            UserError: it is not there, or not whole.
        """
        path = self._path(step)
        if not self._whole(path):
            raise UserError(
                f"{path}: this checkpoint is missing or damaged as this worker sees it, yet worker 0 chose it; "
                "the output root (RAYREID_ROOT) must be storage that all workers share"
            )
        return torch.load(path, map_location=device, weights_only=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.pt"

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("*.pt"), reverse=True)

    def _whole(self, path: Path) -> bool:
        try:
            return json.loads(_seal(path).read_text())["blake2b"] == _checksum(path)
        except (OSError, ValueError, KeyError):
            return False


def restore(module: Stateful, state: dict[str, Any], source: Path) -> None:
    """Load a module's state whole.

    Raises:
        UserError: it is another architecture's.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: a checkpoint of another architecture ({first})") from None


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
