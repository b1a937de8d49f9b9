"""Detection of a pre-training that learned nothing, from the rows that it logs."""

from collections.abc import Mapping

NEAR = 0.01
"""A loss within this share of the loss of chance has not left it."""
LAST = 0.25
"""Share of the steps, at the end, in which the loss is judged."""
RISE = 0.05
"""A probe that rose by less than this share of its start has not risen: features that learn nothing change it, too."""
LOST = 0.9
"""An effective rank below this share of the one at the start has fallen; smaller differences are those of the draw."""


class LearningWatch:
    """A watch that says at the end of a run whether the network has learned anything.

    It compares the last probe with the one before the first step, and the loss with that of a network that tells no
    image from another. For DINO this is ln K, with K prototypes: a teacher whose output is uniform keeps it there.

    Args:
        steps: Number of optimizer steps of the run.
        epochs: Number of epochs of the run, which need not be whole.
        probed: Whether the run has probes.
        chance: The loss of chance; None if it is not known.
    """

    def __init__(self, steps: int, epochs: float, probed: bool, chance: float | None):
        self.steps, self.epochs, self.probed, self.chance = steps, epochs, probed, chance
        self._start: Mapping[str, float] | None = None
        self._last: Mapping[str, float] | None = None
        self._off = self._judged = 0
        self._told = False

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Return what was not learned, in one sentence for the user, if this row is the run's last; else None."""
        if "probe_mAP" in row:
            self._start = self._start if row["epoch"] > 0 else row
            self._last = row
        if self.chance is not None and "loss" in row and row["step"] >= (1 - LAST) * self.steps:
            self._judged += 1
            self._off += abs(row["loss"] - self.chance) > NEAR * self.chance
        if self._told or not self._is_last(row):
            return None
        self._told = True
        signs = [*self._probe_signs(), *self._loss_signs()]
        return f"the pre-training seems to have learned little: {'; '.join(signs)}" if signs else None

    def _is_last(self, row: Mapping[str, float]) -> bool:
        """Return whether no row follows that is judged: the last probe follows the row of the last step."""
        return "probe_mAP" in row and row["epoch"] >= self.epochs if self.probed else row["step"] >= self.steps - 1

    def _probe_signs(self) -> list[str]:
        if self._start is None or self._last is None:
            return []
        before, after = (100 * row["probe_mAP"] for row in (self._start, self._last))
        if after > (1 + RISE) * before:
            return []
        signs = [f"its probe went from {before:.2f} to {after:.2f} mAP"]
        # Alone, this is no sign: in runs that learn the features also come to share one large component.
        ranks = [row.get("probe_effective_rank", 0.0) for row in (self._start, self._last)]
        if ranks[1] < LOST * ranks[0]:
            signs.append(f"the effective rank of its features fell from {ranks[0]:.1f} to {ranks[1]:.1f}")
        return signs

    def _loss_signs(self) -> list[str]:
        if not self._judged or self._off:
            return []
        return [f"its loss stayed within {100 * NEAR:.0f} % of chance ({self.chance:.3f}) in its last quarter"]
