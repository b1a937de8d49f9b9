"""The part of the page on selections that compares measures of the kept images with those of the pool."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rayreid.data.store.store import ImageStore
from rayreid.evaluation.comparison_figures import measure_histograms
from rayreid.evaluation.page import Page
from rayreid.pipeline.compared_selection import Selection
from rayreid.pipeline.shown_figures import show
from rayreid.selection.image_measures import MEASURES
from rayreid.selection.strategies import cut
from rayreid.stages.quality import read_quality
from rayreid.tracking.run import Run


def known_measures(store: ImageStore, quality: Path | None = None) -> dict[str, np.ndarray]:
    """Return what is known of each image of a store, float64 (N,) by the measure's title.

    Args:
        store: The store.
        quality: Folder of its measures of quality; None: only the index is known.
    """
    if quality is not None:
        table = read_quality(quality, len(store))
        return {name: table[name].to_numpy().astype(np.float64) for name in MEASURES}
    heights, widths = (values.astype(np.float64) for values in (store.heights, store.widths))
    return {"height": heights, "aspect": heights / np.maximum(widths, 1)}


def add_measures(
    page: Page, store: ImageStore, found: Sequence[Selection], measures: Mapping[str, np.ndarray], run: Run
) -> None:
    """Add a histogram per measure: the whole pool, and the subset of each selection; a constant is told in words.

    Args:
        page: The page.
        store: The pool, N images.
        found: The selections.
        measures: Values (N,) by index row, by the measure's title; NaN: not known for this image. See `known_measures`.
        run: MLflow run of the comparison.
    """
    page.heading("What kind of images are kept")
    varied = {title: values for title, values in measures.items() if len(np.unique(values[np.isfinite(values)])) > 1}
    for title, values in measures.items():
        known = values[np.isfinite(values)]
        if title not in varied:
            page.text(f"{title}: {known[0]:g} in all images." if len(known) else f"{title}: not known of any image.")
    if not varied:
        return
    page.text("Filled: the whole pool. Lines: the subset of each selection. Each is scaled to its own size.")
    kept = {one.label: cut(store.keys, one.priority, int(one.manifest["count"])) for one in found}
    show(page, run, measure_histograms(varied, kept), "measures", "Measures of the pool's and of the kept images")
