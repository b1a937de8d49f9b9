"""Published results, shown next to measured ones, and a check whether the two can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
        task: supervised, usl or uda (from the other of the two datasets).
        model: Backbone and stem, or the name of another work.
        pretrained: Dataset of the pre-training.
        dataset: market1501 or msmt17.
        mAP: Mean average precision, in percent.
        rank1: Rank-1, in percent.
        source: The paper.
    """

    task: str
    model: str
    pretrained: str
    dataset: str
    mAP: float  # noqa: N815 (its name everywhere)
    rank1: float
    source: str


HALF_CLAIM = "published: half of LUPerson loses nothing"
"""The paper's claim about the fraction: the best 50 % by CFS pre-train as well as the whole pool."""
CLAIMED = 0.5

_LUO = "Luo et al., arXiv 2111.12084"
_SUBSET = "CFS subset of LUPerson"
PUBLISHED = (
    Published("supervised", "ViT-S/16, DINO", "all of LUPerson", "market1501", 90.3, 95.4, _LUO),
    Published("supervised", "ViT-S/16, DINO", _SUBSET, "market1501", 91.0, 96.0, _LUO),
    Published("supervised", "ViT-S/16 + ICS, DINO", _SUBSET, "market1501", 91.3, 96.2, _LUO),
    Published("supervised", "ViT-B/16 + ICS, DINO, 384 × 128", "LUPerson", "market1501", 93.2, 96.7, _LUO),
    Published("supervised", "ViT-S/16, DINO", "all of LUPerson", "msmt17", 64.2, 83.4, _LUO),
    Published("supervised", "ViT-S/16, DINO", _SUBSET, "msmt17", 66.1, 84.6, _LUO),
    Published("supervised", "ViT-S/16 + ICS, DINO", _SUBSET, "msmt17", 68.1, 86.1, _LUO),
    Published("supervised", "ViT-B/16 + ICS, DINO, 384 × 128", "LUPerson", "msmt17", 75.0, 89.6, _LUO),
    Published("usl", "ViT-S/16, DINO", "LUPerson", "market1501", 88.2, 94.2, _LUO),
    Published("usl", "ViT-S/16 + ICS, DINO", "LUPerson", "market1501", 89.6, 95.3, _LUO),
    Published("usl", "ViT-S/16, DINO", "LUPerson", "msmt17", 40.9, 66.4, _LUO),
    Published("usl", "ViT-S/16 + ICS, DINO", "LUPerson", "msmt17", 50.6, 75.0, _LUO),
    Published("uda", "ViT-S/16, DINO", "LUPerson", "market1501", 89.4, 95.4, _LUO),
    Published("uda", "ViT-S/16 + ICS, DINO", "LUPerson", "market1501", 89.9, 95.5, _LUO),
    Published("uda", "ViT-S/16, DINO", "LUPerson", "msmt17", 47.4, 70.8, _LUO),
    Published("uda", "ViT-S/16 + ICS, DINO", "LUPerson", "msmt17", 57.8, 79.5, _LUO),
    Published("supervised", "ViT-B", "LUPerson", "market1501", 93.0, 96.8, "PASS"),
    Published("supervised", "ViT-B", "LUPerson", "msmt17", 71.8, 88.2, "PASS"),
    Published("supervised", "Swin-B", "LUPerson", "market1501", 93.9, 96.9, "SOLIDER"),
    Published("supervised", "Swin-B", "LUPerson", "msmt17", 77.1, 90.7, "SOLIDER"),
    Published("supervised", "ViT-B", "LUPerson", "market1501", 95.0, 97.6, "PersonViT"),
    Published("supervised", "ViT-B", "LUPerson", "msmt17", 80.8, 92.0, "PersonViT"),
)

_TEST_SETS = {"market1501": ("Market-1501", 3_368, 15_913), "msmt17": ("MSMT17", 11_659, 82_161)}
"""The public test sets: number of queries, and of gallery images without junk."""


def published_for(task: str, dataset: str) -> Sequence[Published]:
    """Return the results of a task on a dataset, or on both datasets if this one has none."""
    ours = [one for one in PUBLISHED if one.task == task]
    return [one for one in ours if one.dataset == dataset] or ours


def incomparable(target: str, queries: int | None, gallery: int | None) -> str | None:
    """Return the reason why measured and published figures cannot be compared, as a sentence; None if they can.

    Args:
        target: The dataset with its edition, e.g. `market1501` or `msmt17 V2`.
        queries: Number of queries of the evaluation, including those without a true match; None: not known.
        gallery: Number of images ranked, without junk; None: not known.
    """
    name, _, edition = target.partition(" ")
    if name not in _TEST_SETS:
        return f"They cannot be compared: the measured ones are on {target}, the published ones on public test sets."
    public, all_queries, all_gallery = _TEST_SETS[name]
    if edition == "V2":
        return f"They cannot be compared: {public} V2 has its faces masked, and differs from V1 by several points."
    if (queries, gallery) != (all_queries, all_gallery):
        known = queries is not None and gallery is not None
        held = f"{queries:,} queries, {gallery:,} images" if known else "of unknown size"
        return (
            f"They cannot be compared: {public}'s public test set has {all_queries:,} queries and {all_gallery:,} "
            f"gallery images, this target ({held}) is another one."
        )
    return None
