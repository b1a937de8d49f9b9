"""The table on which to decide, before a training, which selection and which fraction of a pool are worth one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rayreid.data.store.store import ImageStore
from rayreid.evaluation.page import Page
from rayreid.pipeline.compared_selection import Selection, cuts_of
from rayreid.pipeline.judging import WHOLE, Judged
from rayreid.pipeline.short_trainings import Line, Trained
from rayreid.selection.judgement import NEAR, SAMPLE
from rayreid.selection.steps import steps_of
from rayreid.tracking.names import slug
from rayreid.tracking.run import Run

_ABSENT = "–"
_COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "coverage_mean": ("coverage, mean", "{:.3f}".format),
    "coverage_median": ("coverage, median", "{:.3f}".format),
    "coverage_p10": ("coverage, tenth percentile", "{:.3f}".format),
    "effective_rank": ("effective rank", "{:.1f}".format),
    "cluster_entropy": ("cluster entropy", "{:.3f}".format),
    "near_duplicates": ("near-duplicates left", "{:.1%}".format),
}
"""Title of the column of each figure of a `Judgement`, and how to write its values."""


def add_judgements(
    page: Page,
    store: ImageStore,
    found: Sequence[Selection],
    groups: Mapping[str, np.ndarray],
    judged: Judged | None,
    run: Run,
    trained: Trained | None = None,
) -> None:
    """Add the table, and log its figures as `<figure>.<selection>.<per cent of the pool>`.

    Args:
        page: The page.
        store: The pool.
        found: The selections.
        groups: Mask (N,) of the images of each origin, by name; empty if origins are not known.
        judged: Figures from features; None if no selection has a θs.
        run: MLflow run of the comparison.
        trained: Results of short trainings; None if none were asked for.
    """
    page.heading("Before you train")
    _explain(page, judged, bool(groups))
    if trained:
        _explain_training(page, trained)
    columns = {**(_COLUMNS if judged else {}), **(_trained_columns(trained.steps) if trained else {})}
    rows: list[list[str]] = []
    for label, fraction, kept in _cuts(store, found):
        cells = [label, f"{fraction:.0%}", f"{int(kept.sum()):,}"]
        cells += [f"{kept[members].mean():.1%}" for members in groups.values()]
        values = _values((label, fraction), judged, trained)
        cells += [column[1](values[name]) if name in values else _ABSENT for name, column in columns.items()]
        run.metrics({f"{name}.{slug(label)}.{100 * fraction:.0f}": value for name, value in values.items()})
        rows.append(cells)
    head = ["selection", "of the pool", "images", *(f"kept: {name}" for name in groups)]
    page.table([*head, *(title for title, _ in columns.values())], rows, sorts=True)


def _trained_columns(steps: int) -> dict[str, tuple[str, Callable[[float], str]]]:
    return {"probe_end": (f"probe mAP after {steps:,} steps", "{:.1%}".format)}


def _values(line: Line, judged: Judged | None, trained: Trained | None) -> dict[str, float]:
    """Return the figures of a line that are known, by name."""
    found = vars(judged.figures[line]) if judged else {}
    probes = trained.probes.get(line, {}) if trained else {}
    values = {name: found.get(name) for name in _COLUMNS} | {"probe_end": probes.get("probe_end")}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _cuts(store: ImageStore, found: Sequence[Selection]) -> Iterable[tuple[str, float, np.ndarray]]:
    """Yield label, fraction, and mask (N,) of the kept images of each line of the table."""
    for one in found:
        sizes = cuts_of(store, one)
        steps = steps_of(store.keys, one.priority, list(sizes.values()))
        for number, fraction in enumerate(sizes):
            yield one.label, fraction, steps <= number
    yield WHOLE, 1.0, np.ones(len(store), bool)


def _explain(page: Page, judged: Judged | None, origins: bool) -> None:
    page.text(
        "A line per selection and fraction; of 100%, too, if it removes images. A click on the head of a column sorts "
        "by it, a second one the other way." + (" Kept: share of an origin's images in the subset." if origins else "")
    )
    if judged is None:
        page.text(
            "No selection here needs a source proxy θs, so there are no features to judge by; --strategy "
            "target_similarity adds coverage of the target, effective rank, cluster entropy and near-duplicates."
        )
        return
    page.text(
        f"The other columns compare features of {judged.source}; the pool's mean feature is subtracted for cosines "
        "and clusters. Coverage: cosine of each training image of the target or targets, or of each image of one "
        f"without labels (a sample of {SAMPLE:,} of more), to the nearest kept image. Effective rank: the number of "
        "directions in which kept images differ; exp of the entropy of the normalised eigenvalues of their "
        "covariance. Cluster entropy: 1 if they are spread evenly over the pool's √N k-means clusters, 0 if one holds "
        "all. Near-duplicates left: share "
        f"of kept images whose nearest other kept image has a cosine of at least {NEAR} (a sample of {SAMPLE:,} of "
        "a larger pool, compared with all kept images)."
    )


def _explain_training(page: Page, trained: Trained) -> None:
    starts = [start for probes in trained.probes.values() if (start := probes.get("probe_start")) is not None]
    before = f" It was {starts[0]:.1%} before the first step." if starts else ""
    page.text(
        f"Probe mAP: retrieval among the target's training images, after a pre-training of {trained.steps:,} steps on "
        f"the line's images; all have the same start.{before} A subset of less than a batch is not trained on. Short "
        "trainings differ by chance: see whether a difference holds with another seed."
    )
