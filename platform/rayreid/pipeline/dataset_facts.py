"""Facts about the datasets of a run that are known before the run begins."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from rayreid.config import Source
from rayreid.data.datasets import Dataset, location, open_source
from rayreid.data.datasets.layout import passed_over
from rayreid.data.store.changes import changes_since_ingest
from rayreid.data.store.manifest import read_manifest
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.probe import findable_identities
from rayreid.evaluation.protocol import check_findable
from rayreid.stages import ingest, pretrain
from rayreid.storage.artifacts import Artifact

SPLITS = ("train", "query", "gallery")
"""Splits of a target."""


@dataclass(frozen=True)
class Contents:
    """Facts about a dataset that are known before a run.

    Attributes:
        images: Number of images per split; None for a pool that is not stored yet and has enough images, because
            listing millions of files only to count them would take minutes.
        identities: Number of identities in the split train.
        findable: Whether a probe can find at least one of them.
        fault: Why an evaluation would find nobody; "" if it finds somebody.
        passed_over: How many files gave no image, the first of them, and why, for the end of a message.
    """

    images: Mapping[str, int] | None = None
    identities: int = 0
    findable: bool = False
    fault: str = ""
    passed_over: str = ""


class Datasets:
    """Cache of the facts about datasets, so that each dataset is read once.

    Args:
        root: The output root, which may contain stores of the datasets.
        enough: Number of images above which the size of a pool does not matter.
        say: Prints a line about a store that cannot be compared with its files. None: compare none.
    """

    def __init__(self, root: Path, enough: int, say: Callable[[str], None] | None = None):
        self.root, self.enough, self._say = root, enough, say
        self._known: dict[tuple[str, str], Contents] = {}

    def look(self, role: str, source: Source) -> Contents:
        """Return the facts about the pool or the target.

        Raises:
            UserError: The dataset does not exist, is empty, does not fit the role, or changed since it was ingested.
        """
        artifact = ingest.plan(self.root, source)
        if (role, artifact.id) not in self._known:
            if artifact.complete and self._say is not None:
                _refuse_changes(role, source, artifact.path, self._say)
            self._known[role, artifact.id] = _look(role, source, artifact, self.enough)
        return self._known[role, artifact.id]


def _refuse_changes(role: str, source: Source, folder: Path, say: Callable[[str], None]) -> None:
    """Refuse a store whose dataset holds something else by now; if the dataset cannot be opened, only say so."""
    if source.verify_source == "never":
        return
    try:
        dataset = open_source(source)
    except UserError as error:
        say(f"{role}: {error}; its store {folder} is used without a comparison")
        return
    found = changes_since_ingest(folder, dataset, location(source), source.verify_source)
    if found:
        key = f"{role}." if role in ("pool", "target", "source") else "its "
        raise UserError(
            f"{role}: {location(source)} changed since it was ingested: {found}; set {key}revision="
            f"{source.revision + 1} to ingest it as it is now, or {key}verify_source=never to use the store {folder} "
            "as it is"
        )


def _look(role: str, source: Source, artifact: Artifact, enough: int) -> Contents:
    contents = _stored(role, artifact.path) if artifact.complete else _listed(role, open_source(source), enough)
    if role == "pool":
        pretrain.refuse_test_images(source.dataset, contents.images or ())
    if role == "target":
        _check_splits(source.dataset, contents)
    return contents


def _stored(role: str, folder: Path) -> Contents:
    manifest = read_manifest(folder)
    if role == "pool":
        return Contents(manifest["counts"])
    store = ImageStore(folder)
    rows = {split: store.rows_of(split) for split in SPLITS}
    return _labelled(
        manifest["counts"], {split: (store.pids[mine], store.camids[mine]) for split, mine in rows.items()}
    )


def _listed(role: str, dataset: Dataset, enough: int) -> Contents:
    """Return the facts from the dataset's own listing; an unlabelled pool is listed only until there are enough."""
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
    labelled = _labelled(images, {split: (pids, camids) for split, (pids, camids) in columns.items()})
    return replace(labelled, passed_over=passed_over(dataset.ignored, dataset.left_out))


def _labelled(images: Mapping[str, int], labels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Contents:
    """Return the facts from the image counts of all splits, and the identities and cameras of the labelled splits."""
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
    """Refuse a target now that lacks a split or anybody to find: it would fail only after all trainings."""
    for split in SPLITS:
        if not (target.images or {}).get(split):
            raise UserError(
                f"target: dataset {name} has no image of split {split!r}{target.passed_over}; it needs train, query "
                "and gallery"
            )
    check_answers("target", name, target)


def check_answers(role: str, name: str, target: Contents) -> None:
    """Refuse a dataset on which nothing can be evaluated.

    Raises:
        UserError: There is no query or no gallery, or no query can be found.
    """
    for split in SPLITS[1:]:
        if not (target.images or {}).get(split):
            raise UserError(
                f"{role}: dataset {name} has no image of split {split!r}{target.passed_over}; evaluation needs it"
            )
    if target.fault:
        raise UserError(f"{role}: dataset {name}: {target.fault}")
