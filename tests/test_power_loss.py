"""A real file system that loses power: a copy of its disk, taken at a moment, is what is found afterwards."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crash_points import CrashPoints
from crash_scenarios import scenarios
from disturbed_disk import Tree, tree_of

pytestmark = pytest.mark.slow

_BYTES = 2**26
_POINTS = 12
_HARSH = "loop,data=writeback,noauto_da_alloc"
"""The journal is committed without the bytes of files, and a file that replaces another is not synced for that."""


class Volume:
    """An ext4 file system in a file.

    Args:
        folder: Folder for the file and the mount points.
    """

    def __init__(self, folder: Path):
        self.image, self.place = folder / "disk", folder / "mounted"
        self._copy, self._copied = folder / "copy", folder / "found"
        self.place.mkdir()
        self._copied.mkdir()
        with self.image.open("wb") as stream:
            stream.truncate(_BYTES)
        _run("mkfs.ext4", "-q", "-F", self.image)

    def __enter__(self) -> "Volume":
        _run("mount", "-o", _HARSH, self.image, self.place)
        return self

    def __exit__(self, *error: object) -> None:
        _run("umount", self.place)

    def sync(self) -> None:
        """Bring all of it to its disk."""
        _run("sync", "-f", self.place)

    @contextmanager
    def lost(self) -> Iterator[Path]:
        """Yield what is found of the volume, within a `with` block, if the power fails now."""
        shutil.copyfile(self.image, self._copy)
        _run("mount", "-o", "loop", self._copy, self._copied)
        try:
            yield self._copied
        finally:
            _run("umount", self._copied)


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)


@pytest.fixture
def volume(tmp_path):
    missing = [name for name in ("mkfs.ext4", "mount", "umount", "sync") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid():
        pytest.skip("only root may mount a file system")
    made = Volume(tmp_path)
    try:
        made.__enter__()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a file cannot be mounted here: {error.stderr.strip()}")
    yield made
    made.__exit__()


def found_after(volume: Volume, points: CrashPoints, place: int) -> Tree:
    """Return what is found in the root if the power fails at an operation."""
    points.begin()
    volume.sync()
    with points.stopped(place), volume.lost() as copy:
        return tree_of(copy / points.root.name)


@pytest.mark.parametrize("name", scenarios())
def test_no_loss_of_power_makes_a_difference(name, volume, tmp_path):
    wrong = []
    with CrashPoints(scenarios()[name], tmp_path, volume.place / "root") as points:
        for place in points.places[:: max(1, len(points.places) // _POINTS)]:
            found = points.gone_on(found_after(volume, points, place))
            wrong += [f"{points.operations[place]}: {one}" for one in found]
    print(f"{name}: {points.points} losses of power, {points.states} states")
    assert not wrong, "\n".join(wrong)


def test_the_volume_really_loses_what_was_not_synced(volume):
    for name in ("synced", "not-synced"):
        with (volume.place / name).open("wb") as stream:
            stream.write(b"bytes")
            stream.flush()
            if name == "synced":
                os.fsync(stream.fileno())
    with volume.lost() as copy:
        assert (copy / "synced").read_bytes() == b"bytes"
        assert not (copy / "not-synced").exists() or not (copy / "not-synced").read_bytes()
