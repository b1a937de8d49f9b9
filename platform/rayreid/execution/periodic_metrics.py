"""What is seen of a model in training, by the probe or on query and gallery: when, and what is told of it.

Its figures stand in rows of the journal at the end of an epoch: `<kind>_mAP` and `<kind>_rank1`.
"""

from collections.abc import Mapping, Sequence

from rayreid.evaluation.figures import loss_curves
from rayreid.execution.production import StageContext

KINDS = ("probe", "eval")
"""On the target's split train, and on its query and gallery."""


def due(epochs: int, every: int, total: int) -> bool:
    """Whether a look is due after so many epochs: after every `every`-th of them and the last; 0: never."""
    return bool(every) and (epochs % every == 0 or epochs == total)


def outcome(context: StageContext, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last and the best figures of a training's rows, as facts; draws their curves."""
    facts: dict[str, float] = {}
    for kind in KINDS:
        rows = [row for row in history if f"{kind}_mAP" in row]
        if rows:
            names = [f"{kind}_mAP", f"{kind}_rank1"]
            context.run.figure(loss_curves(rows, names, x="epoch"), f"figures/{kind}.png")
            best = max(rows, key=lambda row: row[f"{kind}_mAP"])
            # Not under the same names: facts are metrics of the run, too, and would add a point to the curves.
            facts |= {f"final_{name}": rows[-1][name] for name in names}
            facts |= {f"best_{name}": best[name] for name in names}
            facts[f"best_{kind}_epoch"] = round(best["epoch"])
    return facts


def note(row: Mapping[str, float]) -> str:
    """The newest figures, for the bar; empty where there are none."""
    return "".join(
        f"  {kind} mAP {100 * row[f'{kind}_mAP']:.1f}  Rank-1 {100 * row[f'{kind}_rank1']:.1f}"
        for kind in KINDS
        if f"{kind}_mAP" in row
    )
