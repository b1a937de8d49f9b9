"""What is known of the datasets of a run before it begins."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rayreid.artifacts import Artifact
from rayreid.config import Source
from rayreid.data.datasets import Dataset
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.probe import findable_identities
from rayreid.stages import ingest, pretrain


@dataclass(frozen=True)
class Contents:
    """What is known of a dataset ahead of a run.

    Attributes:
        images: number per split; None for a pool that is not stored yet and has enough of them: listing millions of
            files only to count them would take minutes.
        identities: number in the split train.
        findable: whether a probe can find one of them.
    """

    images: Mapping[str, int] | None = None
    identities: int = 0
    findable: bool = False


class Datasets:
    """Looks into datasets, into each once.

    Args:
        root: the outputs' root, where some may be stored.
        enough: images from which on the size of a pool does not matter.
    """

    def __init__(self, root: Path, enough: int):
        self.root, self.enough = root, enough
        self._known: dict[tuple[str, str], Contents] = {}

    def look(self, role: str, source: Source) -> Contents:
        """What the pool or the target holds.

        Raises:
            UserError: it is not there, is empty, or not fit for the role.
        """
        artifact = ingest.plan(self.root, source)
        if (role, artifact.id) not in self._known:
            self._known[role, artifact.id] = _look(role, source, artifact, self.enough)
        return self._known[role, artifact.id]


def _look(role: str, source: Source, artifact: Artifact, enough: int) -> Contents:
    contents = _stored(role, artifact.path) if artifact.complete else _listed(role, ingest.open_source(source), enough)
    if role == "pool":
        pretrain.refuse_test_images(source.dataset, contents.images or ())
    if role == "target":
        _check_splits(source.dataset, contents)
    return contents


def _stored(role: str, folder: Path) -> Contents:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if role == "pool":
        return Contents(manifest["counts"])
    store = ImageStore(folder)
    train = store.rows_of("train")
    return _labelled(manifest["counts"], store.pids[train], store.camids[train])


def _listed(role: str, dataset: Dataset, enough: int) -> Contents:
    """From the dataset's own listing; of a pool that is not labelled no more than would be enough."""
    records = iter(dataset.records())
    first = next(records, None)
    if first is None:
        raise UserError(f"{role}: dataset {dataset.name} has no image")
    if role == "pool" and first.split == "pool":
        listed = 1 + sum(1 for _ in islice(records, enough - 1))
        return Contents({"pool": listed} if listed < enough else None)
    images, train = Counter([first.split]), [(first.pid, first.camid)] if first.split == "train" else []
    for record in records:
        images[record.split] += 1
        if record.split == "train":
            train.append((record.pid, record.camid))
    labels = np.array(train, np.int64).reshape(-1, 2)
    return _labelled(images, labels[:, 0], labels[:, 1])


def _labelled(images: Mapping[str, int], pids: np.ndarray, camids: np.ndarray) -> Contents:
    """From the counts of all splits and the labels of the split train."""
    return Contents(images, len(np.unique(pids[pids >= 0])), len(findable_identities(pids, camids)) > 0)


def _check_splits(name: str, target: Contents) -> None:
    """Without one of its splits a target would fail only after everything has been trained."""
    for split in ("train", "query", "gallery"):
        if not (target.images or {}).get(split):
            raise UserError(
                f"target: dataset {name} has no image of split {split!r}; it needs train, query and gallery"
            )
