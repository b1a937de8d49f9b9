"""The names of the retrieval metrics, the same in artifacts, MLflow, tables and figures; all are in [0, 1]."""

from collections.abc import Mapping
from typing import Any

TITLES = {"mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP"}
"""The titles of the metrics in tables and figures."""

METRICS = tuple(TITLES)

RERANKED = "_rerank"
"""Suffix of a metric that was measured after re-ranking."""


def percent(name: str) -> str:
    """Return the title of a table's column that shows a metric in per cent."""
    return f"{TITLES[name]} %"


def scores_in(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among an evaluation's facts, including those with `RERANKED` if lists were re-ranked."""
    return {f"{name}{end}": facts[f"{name}{end}"] for end in ("", RERANKED) for name in METRICS if name + end in facts}
