"""The strategy `quality`: rules on measures of the images, and a priority by the worst of some of them.

A rule is `min_<measure>: value`, `max_<measure>: value`, or `<measure>: {drop_lowest: share, drop_highest: share}`.
Each rule judges all images, whatever the others drop, so that their order changes nothing.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayreid.errors import UserError
from rayreid.selection.image_measures import MEASURES, RANGES
from rayreid.selection.strategies import Priority

BY = ("height", "sharpness", "contrast")
"""The measures by which images are ranked, unless others are named."""

_MIN, _MAX = "min_", "max_"
_LOWEST, _HIGHEST = "drop_lowest", "drop_highest"
_NAMES = tuple(f"{prefix}{measure}" for measure in MEASURES for prefix in (_MIN, _MAX, ""))


@dataclass(frozen=True)
class Rule:
    """One condition on one measure.

    Attributes:
        name: The rule as it was written: `min_height`, `sharpness.drop_lowest`.
        measure: The measure that it judges.
        kind: `min_` (smaller values are dropped), `max_` (larger ones), `drop_lowest` or `drop_highest`.
        value: The threshold, or the share of the images to drop.
    """

    name: str
    measure: str
    kind: str
    value: float

    def drops(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Return which images the rule drops, bool (N,); never those that lack the measure.

        Args:
            values: The measure (N,), NaN for images that lack it, in ascending order of their keys. `drop_lowest`
                drops exactly `round(share · n)` of the n images that have it: the first ones in the order of value,
                then key; `drop_highest` the last ones in the same order.
        """
        if self.kind == _MIN:
            return values < self.value
        if self.kind == _MAX:
            return values > self.value
        rows = np.flatnonzero(np.isfinite(values))
        ordered = rows[np.argsort(values[rows], kind="stable")]
        count = round(self.value * len(rows))
        dropped = np.zeros(len(values), bool)
        dropped[ordered[:count] if self.kind == _LOWEST else ordered[len(rows) - count :]] = True
        return dropped


def parse_rules(written: Mapping[str, Any], place: str = "select") -> tuple[Rule, ...]:
    """Return the rules that a part of an experiment file gives.

    Args:
        written: The rules, such as `{"min_height": 64, "sharpness": {"drop_lowest": 0.05}}`; null values are ignored.
        place: Key of the section in which they stand, for messages.

    Raises:
        UserError: A rule or its measure is unknown, or a value is out of range or contradicts another.
    """
    rules = tuple(
        rule for name, value in written.items() if value is not None for rule in _rules_of(str(name), value, place)
    )
    for measure in MEASURES:
        _check_together({rule.kind: rule.value for rule in rules if rule.measure == measure}, measure, place)
    return rules


def parse_by(names: Sequence[str], place: str = "select.by") -> tuple[str, ...]:
    """Return the measures by which images are ranked.

    Raises:
        UserError: A measure is unknown, or none is given.
    """
    if isinstance(names, str) or not names:
        raise UserError(f"{place} is {names!r}; give a list of measures: {', '.join(MEASURES)}")
    for name in names:
        if name not in MEASURES:
            raise UserError(f"{place}: unknown measure {name!r}; {_near(str(name), MEASURES)}")
    return tuple(dict.fromkeys(names))


def kept(table: pa.Table, rules: Iterable[Rule]) -> npt.NDArray[np.bool_]:
    """Return which images all rules keep, bool (N,).

    An image that lacks a measure is not dropped by rules on it; one that lacks all of them, because it cannot be
    decoded, is always dropped.

    Args:
        table: Measures by column, N rows in ascending order of their keys, as `stages.quality.read_quality` reads it.
        rules: The rules.

    Raises:
        UserError: The table lacks a measure.
    """
    stays = _decodable(table)
    for rule in rules:
        stays &= ~rule.drops(_column(table, rule.measure, rule.name))
    return stays


def quality_priority(
    table: pa.Table, rules: Sequence[Rule], by: Sequence[str] = BY, place: str = "select"
) -> tuple[Priority, dict[str, int]]:
    """Return priorities by which an image is as good as its worst percentile rank among some measures.

    The percentile rank is the share of the images with no larger value, of all that have the measure. It lies in (0, 1]
    and does not depend on the rules; a measure that is the same for all images decides nothing. An image that has none
    of the measures gets 0.5.

    Args:
        table: Measures by column; see `kept`.
        rules: The rules.
        by: The measures by which to rank.
        place: Key of the section in which the rules stand, for messages.

    Returns:
        Priorities float64 (N,), NaN for the images that the rules drop or that cannot be decoded; and facts: how many
        stay (`eligible`), and how many each rule drops by itself (`dropped.<rule>`).

    Raises:
        UserError: The table lacks a measure, or no image is left.
    """
    stays = kept(table, rules)
    dropped = {f"dropped.{rule.name}": int(rule.drops(_column(table, rule.measure)).sum()) for rule in rules}
    if not stays.any():
        counts = ", ".join(f"{name.removeprefix('dropped.')} drops {count:,}" for name, count in dropped.items())
        undecodable = int((~_decodable(table)).sum())
        raise UserError(
            f"{place}: the rules of quality leave none of the {len(stays):,} images ({counts or 'no rule'}; "
            f"{undecodable:,} cannot be decoded); loosen them"
        )
    ranks = np.array([_percentile_ranks(_column(table, measure, "by")) for measure in by])
    worst = np.nan_to_num(np.fmin.reduce(ranks, axis=0), nan=0.5)
    return np.where(stays, worst, np.nan), {"eligible": int(stays.sum()), **dropped}


def _percentile_ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the percentile rank of each value (N,) among those that are not NaN; NaN for these."""
    known = np.isfinite(values)
    ordered = np.sort(values[known])
    ranks = np.full(len(values), np.nan)
    ranks[known] = np.searchsorted(ordered, values[known], "right") / max(1, len(ordered))
    return ranks


def _decodable(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which images have any measure at all, bool (N,)."""
    found = np.zeros(len(table), bool)
    for measure in MEASURES:
        if measure in table.column_names:
            found |= np.isfinite(table[measure].to_numpy())
    return found


def _column(table: pa.Table, measure: str, user: str = "") -> npt.NDArray[np.floating]:
    if measure not in table.column_names:
        raise UserError(
            f"the measures of the pool have no column {measure!r}, which {user} needs; remove the folder of the "
            "artifact quality and run the same command again, which makes it anew"
        )
    return table[measure].to_numpy()


def _rules_of(name: str, value: Any, place: str) -> list[Rule]:
    """Return the rules that one key gives."""
    if name not in _NAMES:
        raise UserError(f"{place}: unknown rule {name!r}; {_near(name, _NAMES)}")
    if name not in MEASURES:
        return [_threshold(name, value, place)]
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{place}.{name} is {value!r}; give {{{_LOWEST}: share}}, {{{_HIGHEST}: share}} or both")
    for kind in value:
        if kind not in (_LOWEST, _HIGHEST):
            raise UserError(f"{place}.{name}: unknown key {kind!r}; {_near(str(kind), (_LOWEST, _HIGHEST))}")
    return [_share(name, kind, share, place) for kind, share in value.items()]


def _threshold(name: str, value: Any, place: str) -> Rule:
    kind, measure = name[: len(_MIN)], name[len(_MIN) :]
    least, most = RANGES[measure]
    if not _is_number(value) or not least <= value <= most:
        raise UserError(f"{place}.{name} is {value!r}; {measure} lies between {least:,} and {most:,}")
    return Rule(name, measure, kind, float(value))


def _share(measure: str, kind: str, value: Any, place: str) -> Rule:
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(f"{place}.{measure}.{kind} is {value!r}; give a share of the images, from 0 to below 1")
    return Rule(f"{measure}.{kind}", measure, kind, float(value))


def _check_together(values: Mapping[str, float], measure: str, place: str) -> None:
    """Raise a UserError if the rules on one measure contradict each other."""
    if values.get(_MIN, -math.inf) > values.get(_MAX, math.inf):
        raise UserError(
            f"{place}: min_{measure} ({values[_MIN]:g}) is above max_{measure} ({values[_MAX]:g}), which leaves no "
            "image; swap them"
        )
    if values.get(_LOWEST, 0.0) + values.get(_HIGHEST, 0.0) >= 1:
        raise UserError(
            f"{place}.{measure}: {_LOWEST} {values[_LOWEST]:g} and {_HIGHEST} {values[_HIGHEST]:g} together drop every "
            "image; lower one"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if known is _NAMES:
        return f"{hint}Known: min_, max_, or {{{_LOWEST}, {_HIGHEST}}}, of {', '.join(MEASURES)}"
    return f"{hint}Known: {', '.join(known)}"
