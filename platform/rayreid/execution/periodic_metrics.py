"""Periodic evaluation of a model in training, by the probe or on query and gallery: its schedule and its report.

The journal's row at the end of an epoch holds the metrics `<kind>_mAP` and `<kind>_rank1`, and for a probe
`probe_effective_rank`.
"""

from collections.abc import Mapping, Sequence

from rayreid.evaluation.curves import loss_curves
from rayreid.execution.production import StageContext

KINDS: tuple[str, ...] = ("probe", "eval")
"""Kinds of evaluation: on the target's split train, and on its query and gallery."""


def due(epochs: float, every: int, total: float) -> bool:
    """Return whether an evaluation is due after `epochs` epochs.

    Args:
        epochs: Number of completed epochs; a fraction at the end of a training that ends inside an epoch.
        every: Interval between evaluations in epochs; the end of the training also has one. 0 disables them.
        total: Number of epochs of the whole training.
    """
    return bool(every) and (epochs % every == 0 or epochs == total)


def outcome(context: StageContext, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the final and the best metrics of a training's rows as facts, and log a figure of their curves."""
    facts: dict[str, float] = {}
    for kind in KINDS:
        rows = [row for row in history if f"{kind}_mAP" in row]
        if rows:
            shown = [f"{kind}_mAP", f"{kind}_rank1"]
            context.run.figure(loss_curves(rows, shown, x="epoch"), f"figures/{kind}.png")
            names = [name for name in rows[-1] if name.startswith(f"{kind}_")]
            best = max(rows, key=lambda row: row[f"{kind}_mAP"])
            # The names must differ from the rows': facts are also metrics of the run, and would add a point to curves.
            facts |= {f"final_{name}": rows[-1][name] for name in names}
            facts |= {f"best_{name}": best[name] for name in names}
            facts[f"best_{kind}_epoch"] = round(best["epoch"], 2)
    return facts


def note(row: Mapping[str, float]) -> str:
    """Return the newest metrics as text for the progress bar; empty if the row has none."""
    return "".join(
        f"  {kind} mAP {100 * row[f'{kind}_mAP']:.1f}  Rank-1 {100 * row[f'{kind}_rank1']:.1f}"
        for kind in KINDS
        if f"{kind}_mAP" in row
    )
