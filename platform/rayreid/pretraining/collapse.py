"""Noticing, from what a run logs, that a network says the same of every image."""

import math
from collections.abc import Mapping

UNIFORM = 0.99
ONE_HOT = 0.01
PATIENCE = 500
ALIKE = 0.01


class CollapseWatch:
    """Reads a DINO run's logged rows in order, and says once that the teacher's entropy tells of a collapse.

    The teacher's entropy lies between 0, where all mass is on one prototype, and ln K, where it is spread over all K
    alike; without centring it falls to the one, without sharpening it rises to the other (Caron et al., arXiv
    2104.14294, section 5.3 and figure 7). What counts as there:

    - `UNIFORM` = 0.99 of ln K and above. A fresh head's cosines (standard deviation 1/16 in 256 dimensions), divided by
      the temperature 0.04, leave about 1.2 nats below ln K = 11.09: 0.89. At 0.99 the prototypes' odds differ by less
      than a factor of 1.6: there is next to nothing to learn from.
    - `ONE_HOT` = 0.01 of ln K and below, 0.11 nats of 11.09: on average one prototype has 98 % of the mass. Where each
      image is sure of another prototype that is no collapse, but then the student errs: the KL must be as low, too.

    Either counts only when every row says so for `PATIENCE` = 500 steps: the teacher averages the student over some
    250 steps (momentum 0.996), so a passing state of the student does not stay for twice as long. Epochs in which the
    last layer is frozen are not judged: there the loss stands near ln K in sound runs, too.

    Args:
        out_dim: number of prototypes K.
        frozen_epochs: epochs from the start that are not judged.
    """

    def __init__(self, out_dim: int, frozen_epochs: int = 1):
        self.most = math.log(out_dim)
        self.frozen_epochs = frozen_epochs
        self._kind: str | None = None
        self._since = 0
        self._told = False

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """A sentence for the user where this row completes a collapse; of a run, the first one only."""
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
    """Reads the logged rows of a method without prototypes, and says once that its features are all alike.

    That is where `feature_std` stays below `ALIKE` = 0.01 for `PATIENCE` steps: then the mean cosine between two
    images' features is above 0.9999. A network with fresh weights has some 0.1 and more.
    """

    def __init__(self) -> None:
        self._since: int | None = None
        self._told = False

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """A sentence for the user where this row completes a collapse; of a run, the first one only."""
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
    """In words, what an entropy and a KL of these shares of ln K say."""
    if entropy >= UNIFORM:
        return "uniform, the same for every image"
    return "one prototype alone" if max(entropy, kl) <= ONE_HOT else None
