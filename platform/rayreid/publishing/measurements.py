"""Evaluations of a model, and of the other seeds of its row, under the same output root."""

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.comparison import align, interval_of_mean
from rayreid.evaluation.metrics import scores_in
from rayreid.evaluation.ranking import JUNK, UNKNOWN_CAMERA
from rayreid.evaluation.stored import read_queries
from rayreid.inference.named_inputs import Made, find_artifact
from rayreid.pipeline.ingestion import count_test_images
from rayreid.publishing.origin import Lineage, without_places
from rayreid.storage.contents import RECORD

_NO_CAMERAS = {"known": "", "partly known": "some cameras unknown", "unknown": "without cameras"}


@dataclass(frozen=True)
class Measurement:
    """An evaluation of the model, with those of the other seeds of its row.

    Attributes:
        dataset: Name and version of the target; None if its image store is missing or damaged.
        target: Id of the target's artifact.
        fingerprint: Fingerprint of the target's image store.
        cameras: Whether the cameras of the target's queries and of their true matches are `known`, `partly known` or
            `unknown`, as with `cameras: ignore`. Matches by an unknown camera count, which makes the scores higher.
        queries: Number of counted queries.
        gallery: Number of gallery images.
        own: The scores of the published weights, in [0, 1].
        by_seed: The scores of each seed, the published one included.
        low: Lower bound of the 95 % interval of the mean mAP over the seeds.
        high: Upper bound.
        test_images: Number of the target's test images in the pool of the pre-training; None if it cannot be counted,
            because one of the two stores is missing or damaged.
        unclear: Whether evaluations of further seeds may exist, and cannot be told, because artifacts of the history
            of this model, or of a model that was evaluated alike, are missing or damaged.
    """

    dataset: str | None
    target: str
    fingerprint: str
    cameras: str
    queries: int
    gallery: int
    own: Mapping[str, float]
    by_seed: Mapping[int, Mapping[str, float]]
    low: float
    high: float
    test_images: int | None
    unclear: bool

    @property
    def title(self) -> str:
        """Return the name and version of the target, with what its cameras make another test set of it."""
        return ", ".join(part for part in (self.dataset or "unknown", _NO_CAMERAS[self.cameras]) if part)

    @property
    def kind(self) -> str:
        """Return the name of the target as one word; another test set has another one."""
        name = (self.dataset or "unknown").partition(" ")[0]
        return "-".join([name, *_NO_CAMERAS[self.cameras].split()])

    def mean(self, name: str) -> float:
        """Return the mean of a score over the seeds."""
        return statistics.fmean(scores[name] for scores in self.by_seed.values())

    def std(self, name: str) -> float:
        """Return the standard deviation of a score over at least two seeds (n − 1 in the denominator)."""
        return statistics.stdev(scores[name] for scores in self.by_seed.values())


def measurements_of(lineage: Lineage) -> list[Measurement]:
    """Return the evaluations of a model that its output root has, each with the other seeds of the model's row.

    Evaluations of the feature after the BNNeck are left out: a published model gives the feature before it.
    """
    evaluations = [
        one for one in _evaluations(lineage.root) if one.recipe["fields"]["evaluate"].get("feature") != "after"
    ]
    own = [one for one in evaluations if one.recipe["inputs"].get("model") == lineage.made.folder.name]
    return [_measurement(lineage, one, evaluations) for one in own]


def _evaluations(root: Path) -> Iterator[Made]:
    for record in sorted(root.glob(f"evaluate/*/{RECORD}")):
        with contextlib.suppress(UserError):  # one of another model that is damaged
            yield find_artifact(str(record.parent))


def _measurement(lineage: Lineage, own: Made, evaluations: list[Made]) -> Measurement:
    recipe = lineage.signature(own)
    same = {_seed(lineage, one): one for one in evaluations if lineage.signature(one) == recipe}
    same[_seed(lineage, own)] = own
    seeds = dict(sorted(same.items()))
    keys, found = zip(*(read_queries(one.folder) for one in seeds.values()), strict=True)
    low, high = interval_of_mean(np.array(align(keys, found)))
    target = lineage.inputs(own).get("target")
    facts: Mapping[str, Any] = target.facts if target is not None else {}
    alike = [one for one in evaluations if one.recipe["fields"] == own.recipe["fields"]]
    return Measurement(
        dataset=str(without_places(facts.get("dataset", "unknown"))) if target is not None else None,
        target=str(own.recipe["inputs"].get("target")),
        fingerprint=str(facts.get("fingerprint", "")),
        cameras=_cameras(target.folder) if target is not None else "known",
        queries=own.facts["queries"],
        gallery=own.facts["gallery"],
        own=scores_in(own.facts),
        by_seed={seed: scores_in(one.facts) for seed, one in seeds.items()},
        low=low,
        high=high,
        test_images=_overlap(lineage.pools(), target),
        unclear=any(lineage.missing(one) for one in alike),
    )


def _overlap(pools: Sequence[Path] | None, target: Made | None) -> int | None:
    """Return the number of a target's test images in pools; None if one of the stores is not known any more."""
    if pools is None or target is None:
        return None
    return sum(count_test_images(pool, target.folder) for pool in pools)


def _cameras(target: Path) -> str:
    """Return whether the cameras of queries and their true matches are known, from the store; see `Measurement`."""
    store = ImageStore(target)
    queries, gallery = (store.rows_of(split) for split in ("query", "gallery"))
    pids = store.pids[queries]
    matches = gallery[np.isin(store.pids[gallery], pids[pids != JUNK])]
    unknown = store.camids[np.concatenate([queries, matches])] == UNKNOWN_CAMERA
    if not unknown.any():
        return "known"
    return "unknown" if unknown.all() else "partly known"


def _seed(lineage: Lineage, evaluation: Made) -> int:
    model = lineage.inputs(evaluation).get("model")
    return int(model.recipe["fields"].get("seed", 0)) if model is not None else 0
