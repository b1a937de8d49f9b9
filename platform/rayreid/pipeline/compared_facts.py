"""The part of the page on selections that says what is compared: the pool, the subsets, and the proxies behind them."""

from collections.abc import Sequence

from rayreid.config import Experiment
from rayreid.data.store.store import ImageStore
from rayreid.evaluation.page import Page
from rayreid.pipeline.compared_selection import Selection
from rayreid.selection.provenance import Provenance

_DIGITS = 12
"""Number of digits shown of a checksum, enough to tell it from others."""


def add_facts(
    page: Page, e: Experiment, store: ImageStore, found: Sequence[Selection], provenance: Provenance | None
) -> None:
    """Add tables of the pool, the subsets and the proxies."""
    page.heading("What was compared")
    origins = f"known; the target's own domain is {provenance.relevant!r}" if provenance else "not known"
    page.table(
        ["pool", ""],
        [
            ["dataset", " ".join(filter(None, [e.pool.dataset, e.pool.root]))],
            ["images", f"{len(store):,}"],
            ["fingerprint", store.fingerprint[:_DIGITS]],
            ["origins of the images", origins],
            ["target", " ".join(filter(None, [e.target.dataset, e.target.root]))],
        ],
        words=True,
    )
    page.table(
        ["selection", "strategy", "images", "of the pool", "lowest priority kept", "without priority", "subset"],
        [
            [
                one.label,
                one.strategy,
                f"{one.manifest['count']:,}",
                f"{one.manifest['count'] / len(store):.1%}",
                f"{one.cut:.4g}",
                f"{one.unranked:,}",
                str(one.artifact),
            ]
            for one in found
        ],
    )
    proxies = [
        [one.label, role, proxy["artifact"], proxy["weights"][:_DIGITS]]
        for one in found
        for role, proxy in one.manifest["proxies"].items()
    ]
    if proxies:
        page.table(["selection", "its proxies", "made by", "checksum of the weights"], proxies, words=True)
