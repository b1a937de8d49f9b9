"""Detection of a collapse (the same output for every image) from the rows that a run logs."""

import math
from collections.abc import Mapping

UNIFORM = 0.99
ONE_HOT = 0.01
PATIENCE = 500
ALIKE = 0.01


class CollapseWatch:
    """A watch over the logged rows of a DINO run, which reports once if the teacher's entropy shows a collapse.

    The teacher's entropy lies between 0, where all mass is on one prototype, and ln K, where it is spread evenly over
    all K. Without centring it falls to the former, without sharpening it rises to the latter (Caron et al., arXiv
    2104.14294, section 5.3 and figure 7). The thresholds are:

    - `UNIFORM` = 0.99 of ln K and above. The cosines of a fresh head (standard deviation 1/16 in 256 dimensions),
      divided by the temperature 0.04, leave about 1.2 nats below ln K = 11.09: 0.89. At 0.99, the odds of the
      prototypes differ by less than a factor of 1.6: there is next to nothing to learn from.
    - `ONE_HOT` = 0.01 of ln K and below, 0.11 nats of 11.09: on average, one prototype has 98 % of the mass. If each
      image is certain of a different prototype, that is no collapse, but then the student errs; the KL must therefore
      be as low, too.

    A collapse is reported only if every row shows it for `PATIENCE` = 500 steps. The teacher averages the student over
    some 250 steps (momentum 0.996), so a passing state of the student does not last for twice as long. Epochs in which
    the last layer is frozen are not judged, because there the loss is near ln K in sound runs, too.

    Args:
        out_dim: Number of prototypes K.
        frozen_epochs: Number of epochs from the start that are not judged.
    """

    def __init__(self, out_dim: int, frozen_epochs: int = 1):
        self.most = math.log(out_dim)
        self.frozen_epochs = frozen_epochs
        self._kind: str | None = None
        self._since = 0
        self._told = False

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Return a sentence for the user if this row completes a collapse; only the first one of a run is reported."""
        if self._told or "teacher_entropy" not in row or row["epoch"] <= self.frozen_epochs:
            return None
        entropy, step = row["teacher_entropy"], int(row["step"])
        kind = _kind(entropy / self.most, row["kl"] / self.most)
        if kind != self._kind:
            self._kind, self._since = kind, step
        if kind is None or step - self._since < PATIENCE:
            return None
        self._told = True
        return (
            f"the pre-training looks collapsed: since step {self._since} the teacher's output has been {kind} "
            f"(entropy {entropy:.3g} of at most {self.most:.3g}, feature std {row['feature_std']:.2g}); "
            "a lower pretrain.lr or a longer warm-up may help"
        )


class SpreadWatch:
    """A watch that reads the logged rows of a method without prototypes, and reports once if all features are alike.

    They are alike if `feature_std` stays below `ALIKE` = 0.01 for `PATIENCE` steps: the mean cosine between the
    features of two images is then above 0.9999. A network with fresh weights has 0.1 or more.
    """

    def __init__(self) -> None:
        self._since: int | None = None
        self._told = False

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Return a sentence for the user if this row completes a collapse; only the first one of a run is reported."""
        if self._told or "feature_std" not in row:
            return None
        if row["feature_std"] >= ALIKE:
            self._since = None
            return None
        self._since = int(row["step"]) if self._since is None else self._since
        if row["step"] - self._since < PATIENCE:
            return None
        self._told = True
        return (
            f"the pre-training looks collapsed: since step {self._since} the features of all images have been alike "
            f"(feature std {row['feature_std']:.2g}); a lower pretrain.lr or a longer warm-up may help"
        )


def _kind(entropy: float, kl: float) -> str | None:
    """Return a description of the collapse that an entropy and a KL, as shares of ln K, show; None for no collapse."""
    if entropy >= UNIFORM:
        return "uniform, the same for every image"
    return "one prototype alone" if max(entropy, kl) <= ONE_HOT else None
