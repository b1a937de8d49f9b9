"""What is known of the datasets of a run before it begins."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from rayreid.config import Source
from rayreid.data.datasets import Dataset, open_source
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.probe import findable_identities
from rayreid.evaluation.protocol import check_findable
from rayreid.stages import ingest, pretrain
from rayreid.storage.artifacts import Artifact

SPLITS = ("train", "query", "gallery")
"""Of a target."""


@dataclass(frozen=True)
class Contents:
    """What is known of a dataset ahead of a run.

    Attributes:
        images: number per split; None for a pool that is not stored yet and has enough of them: listing millions of
            files only to count them would take minutes.
        identities: number in the split train.
        findable: whether a probe can find one of them.
        fault: why an evaluation would find nobody; "" where it does.
    """

    images: Mapping[str, int] | None = None
    identities: int = 0
    findable: bool = False
    fault: str = ""


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
    contents = _stored(role, artifact.path) if artifact.complete else _listed(role, open_source(source), enough)
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
    rows = {split: store.rows_of(split) for split in SPLITS}
    return _labelled(
        manifest["counts"], {split: (store.pids[mine], store.camids[mine]) for split, mine in rows.items()}
    )


def _listed(role: str, dataset: Dataset, enough: int) -> Contents:
    """From the dataset's own listing; of a pool that is not labelled no more than would be enough."""
    records = iter(dataset.records())
    first = next(records, None)
    if first is None:
        raise UserError(f"{role}: dataset {dataset.name} has no image")
    if role == "pool" and first.split == "pool":
        listed = 1 + sum(1 for _ in islice(records, enough - 1))
        return Contents({"pool": listed} if listed < enough else None)
    images: Counter[str] = Counter()
    labels: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for record in chain([first], records):
        images[record.split] += 1
        if record.split in labels:
            labels[record.split].append((record.pid, record.camid))
    columns = {split: np.array(found, np.int64).reshape(-1, 2).T for split, found in labels.items()}
    return _labelled(images, {split: (pids, camids) for split, (pids, camids) in columns.items()})


def _labelled(images: Mapping[str, int], labels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Contents:
    """From the counts of all splits, and identities and cameras of those that have labels."""
    (pids, camids), (query, query_camids), (gallery, gallery_camids) = (labels[split] for split in SPLITS)
    fault = ""
    if len(query) and len(gallery):
        try:
            check_findable(query, gallery, query_camids, gallery_camids)
        except UserError as error:
            fault = str(error)
    identities = len(np.unique(pids[pids >= 0]))
    return Contents(images, identities, len(findable_identities(pids, camids)) > 0, fault)


def _check_splits(name: str, target: Contents) -> None:
    """Without one of its splits, or anybody to find, a target would fail only after everything has been trained."""
    for split in SPLITS:
        if not (target.images or {}).get(split):
            raise UserError(
                f"target: dataset {name} has no image of split {split!r}; it needs train, query and gallery"
            )
    check_answers("target", name, target)


def check_answers(role: str, name: str, target: Contents) -> None:
    """Refuse a dataset that nothing can be evaluated on.

    Raises:
        UserError: no query, no gallery, or no query that can be found.
    """
    for split in SPLITS[1:]:
        if not (target.images or {}).get(split):
            raise UserError(f"{role}: dataset {name} has no image of split {split!r}; evaluation needs it")
    if target.fault:
        raise UserError(f"{role}: dataset {name}: {target.fault}")
