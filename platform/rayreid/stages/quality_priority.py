"""Stage *priority* of the strategy `quality`: measures of the quality of each image → a priority per pool image."""

from functools import partial
from typing import Any

import numpy as np

from rayreid.config import Ranked
from rayreid.data.store.store import ImageStore
from rayreid.execution.production import StageContext
from rayreid.selection.provenance import Provenance
from rayreid.selection.quality_rules import parse_by, parse_rules
from rayreid.selection.registry import STRATEGIES
from rayreid.stages import score
from rayreid.stages.priority import VERSION, write_priority
from rayreid.stages.quality import read_quality
from rayreid.storage.artifacts import Artifact


def plan(pool: Artifact, measures: Artifact, config: Ranked, provenance: Provenance | None) -> Artifact:
    """Plan the priorities of a pool by the quality of its images.

    Args:
        pool: The pool's image store.
        measures: The measures of its images.
        config: The rules, and the measures by which to order.
        provenance: If given, used for judging only.
    """
    fields = {"strategy": config.strategy} | config.options(STRATEGIES[config.strategy].options)
    job = partial(_rank, config, provenance)
    return Artifact(pool.root, "priority", VERSION, fields, {"pool": pool, "quality": measures}, job)


def _rank(config: Ranked, provenance: Provenance | None, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    table = read_quality(context.input("quality"), len(store))
    rank = STRATEGIES[config.strategy].rank
    priority, facts = rank(table, parse_rules(config.rules), parse_by(config.by))
    write_priority(context, store, {"priority": priority})
    score.draw(context, store, priority, provenance, config.strategy)
    separation = provenance.judge(store.keys, priority) if provenance else None
    judged = {"auc": separation.auc} if separation else {}
    return {"images": len(priority), "without": int(np.isnan(priority).sum()), **facts, **judged}
