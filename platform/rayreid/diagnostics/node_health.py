"""Health of one machine: versions, GPUs that compute correctly, a working faiss, free disk space."""

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from rayreid.errors import UserError, one_line
from rayreid.execution.shared_storage import Token
from rayreid.neighbours.knn import check_sample, nearest
from rayreid.paths import cache_folder

_POINTS, _WIDTH, _NEAREST = 2000, 64, 10
_RAY_SPILLS = 0.05  # Ray moves no objects to a disk with a smaller fraction free


@dataclass(frozen=True)
class Host:
    """State of one machine, sent from the nodes to the driver.

    Attributes:
        python: Version of Python.
        versions: Versions of the requested packages that are installed.
        cuda: Version of CUDA (or ROCm) that torch was built for; None: built without GPU support.
        gpus: Names of the GPUs that computed a matrix product correctly.
        faiss: Version of faiss and where it searches, if it finds the right neighbours, or else "";
            also without the extra `faiss`.
        free: Free bytes on the disk where Ray keeps objects and logs.
        faults: The faults, each in one line that says what to do.
        notes: What is worth knowing and stops no run, in such lines.
    """

    python: str
    versions: dict[str, str]
    cuda: str | None
    gpus: list[str]
    faiss: str
    free: int
    faults: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examination:
    """An examination of a machine: call it there, and it returns what it found.

    Attributes:
        packages: Packages to report the versions of.
        token: Token in the shared storage that the machine should see; None: there is no token.
    """

    packages: Sequence[str]
    token: Token | None

    def __call__(self) -> Host:
        """Examine this machine."""
        seen = [] if self.token is None else self.token.complaints()
        gpus, failing = _gpus()
        faiss, wrong = _faiss()
        scratch = shutil.disk_usage(_scratch())
        return Host(
            python=platform.python_version(),
            versions=versions(self.packages),
            cuda=torch.version.cuda or torch.version.hip,
            gpus=gpus,
            faiss=faiss,
            free=scratch.free,
            faults=[*seen, *failing, *wrong, *_cache()],
            notes=_full(scratch.free, scratch.total),
        )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of the given packages, without those that are not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> tuple[list[str], list[str]]:
    """Return the names of the GPUs that multiply as the CPU does, and the faults of the others."""
    good, bad = [], []
    one = torch.arange(64.0).reshape(8, 8)
    for index in range(torch.cuda.device_count()):
        try:
            right = torch.equal((one.to(f"cuda:{index}") @ one.to(f"cuda:{index}")).cpu(), one @ one)
            why = "its matrix product is wrong"
        except RuntimeError as error:
            right, why = False, one_line(error)
        if right:
            good.append(torch.cuda.get_device_name(index))
        else:
            bad.append(f"GPU {index}: {why}; see whether others use it, and whether torch fits its driver (nvidia-smi)")
    return good, bad


def _faiss() -> tuple[str, list[str]]:
    """Return the version and device of faiss, and its faults; a sample of a search among random points is checked.

    Without the extra `faiss` there is neither: what needs it says so.
    """
    if find_spec("faiss") is None:
        return "", []
    points = torch.randn(_POINTS, _WIDTH, generator=torch.Generator().manual_seed(0))
    try:
        found = nearest(points, _NEAREST, engine="faiss")
        check_sample(torch.from_numpy(found.features), found.similarities, found.rows, exact=True)
        import faiss
    except (UserError, RuntimeError) as error:
        return "", [f"faiss: {error} (only for adapt.search: faiss or approximate, and select.strategy: cluster)"]
    count = faiss.get_num_gpus()
    return f"{faiss.__version__} on {f'{count} GPUs' if count else 'the CPU'}", []


def _full(free: int, total: int) -> list[str]:
    if free > _RAY_SPILLS * total:
        return []
    return [
        f"{_scratch()} is more than 95 % full, so a run fails once Ray's objects no longer fit into memory: make room, "
        "or ray start --temp-dir …"
    ]


def _scratch() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _cache() -> list[str]:
    """Return the fault of the folder for copies of shards, if it is set and cannot be written."""
    try:
        folder = cache_folder()
    except UserError as error:
        return [str(error)]
    if folder is None:
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [
            f"RAYREID_CACHE={folder}: {error.strerror}, so shards are read from shared storage, and those of an object "
            "store not at all; name a folder on a disk of this node"
        ]
