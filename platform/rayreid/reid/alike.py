"""Detection of a fine-tuning whose features have become alike, from the rows that it logs."""

from collections.abc import Mapping

ALIKE = 0.99999
"""Length of the mean of unit features above which they count as alike: cosines then differ by less than 2e-5, which is
near the rounding of float32. A smaller threshold would be wrong: a ViT's features share one large component, and models
with 0.9999 were measured that retrieve well (docs/results.md)."""


class AlikeWatch:
    """A watch that reports once if the features of a batch stay alike.

    The triplet loss on raw features has such a state: if all distances are near 0, its soft margin gives ln 2 with
    gradients that cancel.

    Args:
        patience: Number of optimizer steps for which the features must be alike.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self._since: int | None = None
        self._told = False

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Return a sentence for the user if this row completes a collapse; only the first one of a run is reported."""
        if self._told or "mean_length" not in row:
            return None
        if row["mean_length"] < ALIKE:
            self._since = None
            return None
        self._since = int(row["step"]) if self._since is None else self._since
        if row["step"] - self._since < self.patience:
            return None
        self._told = True
        return (
            f"the fine-tuning looks collapsed: since step {self._since} the features of all images have been alike "
            f"up to rounding (the mean of the unit features has length {row['mean_length']:.6f}); a lower finetune.lr, "
            "finetune.triplet_normalise or a later finetune.triplet_start_epoch may help"
        )
