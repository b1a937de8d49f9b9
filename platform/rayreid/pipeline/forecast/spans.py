"""A quantity that is known only as a range."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A range with its likely value: seconds, bytes, hours.

    Attributes:
        low, likely, high: The three values, ascending.
    """

    low: float
    likely: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], margin: float) -> "Span":
        """Return the span of some measurements, each end wider by a factor `margin` (1: as measured)."""
        found = sorted(values)
        return cls(found[0] / margin, found[len(found) // 2], found[-1] * margin)

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> "Span":
        return Span(self.low * factor, self.likely * factor, self.high * factor)

    def over(self, amount: float) -> "Span":
        """Return how long an amount takes at this pace: `amount / pace`."""
        return Span(amount / self.high, amount / self.likely, amount / self.low)

    def at_least(self, other: "Span") -> "Span":
        """Return the larger of two spans, end by end."""
        return Span(max(self.low, other.low), max(self.likely, other.likely), max(self.high, other.high))

    def content(self, digits: int = 1) -> dict[str, float]:
        """Return the span as plain values, rounded."""
        return {name: round(getattr(self, name), digits) for name in ("low", "likely", "high")}


NOTHING = Span(0.0, 0.0, 0.0)


def total(spans: Iterable[Span]) -> Span:
    """Return the sum of spans."""
    return sum(spans, NOTHING)
