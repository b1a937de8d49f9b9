"""The part of the page on selections that says from which origins the kept images come, where these are known."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rayreid.data.store.store import ImageStore
from rayreid.evaluation.comparison_figures import keep_rates
from rayreid.evaluation.page import Page
from rayreid.pipeline.compared_selection import Selection, sizes_of
from rayreid.pipeline.shown_figures import show
from rayreid.selection.provenance import Provenance
from rayreid.selection.strategies import cut
from rayreid.tracking.names import slug
from rayreid.tracking.run import Run


def add_origins(
    page: Page,
    store: ImageStore,
    found: Sequence[Selection],
    provenance: Provenance,
    groups: Mapping[str, np.ndarray],
    run: Run,
) -> None:
    """Add AUC and keep rates by origin."""
    page.heading("Where the images come from")
    page.text(
        f"The pool's origins are known; they were used for judging only. The target's own domain is "
        f"{provenance.relevant!r}. AUC of an origin: how often an image of it ranks above one of another (0.5: chance)."
    )
    separation = {one.label: provenance.separation(store.keys, one.priority) for one in found}
    page.table(
        ["AUC", *groups],
        [
            [label, *(f"{aucs[name]:.3f}" if name in aucs else "–" for name in groups)]
            for label, aucs in separation.items()
        ],
    )
    for label, aucs in separation.items():
        run.metrics({f"auc.{slug(label)}.{slug(name)}": value for name, value in aucs.items()})
    sizes = sizes_of(store)
    rates = {one.label: _rates(store, one, groups, sizes.values()) for one in found}
    for fraction_number, fraction in enumerate(sizes):
        page.table(
            [f"kept at {fraction:.0%}", *groups],
            [[label, *(f"{shares[name][fraction_number]:.1%}" for name in groups)] for label, shares in rates.items()],
        )
    show(page, run, keep_rates(list(sizes), rates), "keep_rates", "Share of each origin's images that is kept")


def _rates(
    store: ImageStore, one: Selection, groups: Mapping[str, np.ndarray], sizes: Iterable[int]
) -> dict[str, list[float]]:
    """Return the share of each origin's images that subsets of several sizes keep."""
    rates: dict[str, list[float]] = {name: [] for name in groups}
    for size in sizes:
        kept = np.zeros(len(store), bool)
        kept[cut(store.keys, one.priority, size)] = True
        for name, members in groups.items():
            rates[name].append(float(kept[members].mean()))
    return rates
