"""Detection of a fine-tuning whose features have become alike, from the rows that it logs."""

from collections.abc import Mapping

ALIKE = 0.99
"""Length of the mean of unit features above which they count as alike: the mean cosine between two is then above 0.98.
Features of a sound fine-tuning stay below 0.9; collapsed ones were measured at 0.9999."""


class AlikeWatch:
    """A watch that reports once if the features of a batch stay alike.

    The triplet loss on raw features has such a state: with all distances near 0, its soft margin pays ln 2 and its
    gradient vanishes with the distances.

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
            f"(the mean of the unit features has length {row['mean_length']:.4f}); a lower finetune.lr, "
            "finetune.triplet_normalise or a later finetune.triplet_start_epoch may help"
        )
