"""How quantities of a forecast are written: durations, bytes, hours, and why an artifact is made."""

from rayreid.console import clock
from rayreid.pipeline.forecast.forecast import Step
from rayreid.pipeline.forecast.spans import Span
from rayreid.pipeline.forecast.standings import State

_LONG = (("days", 86400, 14 * 86400), ("h", 3600, 24 * 3600))
"""Units of long durations, their seconds, and the duration from which on they are used."""

_SHOWN = 3
"""Differences of a cause that are shown; all of them are in the JSON."""


def duration(span: Span) -> str:
    """Return a duration as `about 7:24 (4:30 to 11:52)`; in hours and days where it is long."""
    unit, one = next(((unit, one) for unit, one, least in _LONG if span.likely >= least), ("", 1))
    if unit:
        low, likely, high = (f"{value / one:,.0f}" for value in (span.low, span.likely, span.high))
        return f"about {likely} {unit} ({low} to {high})"
    return f"about {clock(span.likely)} ({clock(span.low)} to {clock(span.high)})"


def size(span: Span) -> str:
    """Return a number of bytes as `about 117 MB (103 to 165 MB)`."""
    return f"about {bytes_of(span.likely)} ({bytes_of(span.low)} to {bytes_of(span.high)})"


def hours(span: Span) -> str:
    """Return GPU-hours as `about 39 (31 to 80)`."""
    return f"about {_number(span.likely)} ({_number(span.low)} to {_number(span.high)})"


def money(span: Span) -> str:
    """Return a price as `about 78.00 (62.00 to 160.00)`."""
    return f"about {span.likely:,.2f} ({span.low:,.2f} to {span.high:,.2f})"


def bytes_of(count: float) -> str:
    """Return a number of bytes with its unit, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.{1 if count < 9.95 and unit != 'B' else 0}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def work_of(step: Step) -> str:
    """Return the images and steps of an artifact."""
    if step.work is None or not step.work.images:
        return ""
    steps = f", {step.work.steps:,} steps" if step.work.steps else ""
    return f"{step.work.images:,} images{steps}"


def reason_of(step: Step) -> str:
    """Return why a run makes an artifact, or goes on with it; empty if it is reused."""
    standing = step.standing
    if standing.state is State.REUSED:
        return ""
    parts = ["another process is making it" if standing.running else ""]
    if standing.state is State.RESUMED:
        whole = step.work and (step.work.steps if standing.unit == "steps" else step.work.images)
        parts.append(f"{standing.done:,}{f' of {whole:,}' if whole else ''} {standing.unit} are done")
    if standing.fault:
        parts.append(f"it is damaged: {standing.fault}")
    if standing.state is State.MADE and not standing.fault:
        parts.append(_cause_of(step))
    return "; ".join(filter(None, parts))


def _cause_of(step: Step) -> str:
    """Return what differs from the nearest complete artifact of the same stage."""
    if step.cause is None:
        return f"no other {step.artifact.stage} is complete on this root"
    shown = [str(one) for one in step.cause.differences[:_SHOWN]]
    more = len(step.cause.differences) - len(shown)
    return f"nearest {step.cause.nearest}: {'; '.join(shown)}{f'; and {more} more' if more else ''}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
