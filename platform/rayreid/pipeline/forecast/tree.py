"""A forecast on the terminal: a tree of what is reused, resumed and made, and the totals; also as plain JSON values."""

from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from rayreid.console import Screen
from rayreid.errors import escaped
from rayreid.pipeline.forecast.figures import TABLE
from rayreid.pipeline.forecast.forecast import Forecast, Step
from rayreid.pipeline.forecast.side_by_side import waves
from rayreid.pipeline.forecast.spans import Span
from rayreid.pipeline.forecast.standings import State
from rayreid.pipeline.forecast.wording import duration, hours, money, reason_of, size, work_of

_STYLE = {State.REUSED: "green", State.RESUMED: "yellow", State.MADE: "cyan"}
_LEAST_GPU_HOURS = 0.01


def show(screen: Screen, forecast: Forecast, price: float | None = None) -> None:
    """Print a forecast: its tree, what all of it costs, and notes.

    Args:
        screen: The screen to print to.
        forecast: The forecast.
        price: Price of a GPU-hour; None: no price is shown.
    """
    screen.wide(tree_of(forecast))
    for line in totals(forecast, price):
        screen.say(line)


def tree_of(forecast: Forecast) -> Tree:
    """Return what is reused, resumed and made, and why: what is shared first, then each row or trial."""
    count = forecast.trials
    name = ("trial" if forecast.kind == "sweep" else "row") + ("s" if count > 1 else "")
    states = ", ".join(f"{forecast.count(state)} {state}" for state in State)
    title = f"[bold]{escape(escaped(forecast.name))}[/]  {count:,} {name}, {len(forecast.steps):,} artifacts: {states}"
    tree = Tree(title, guide_style="dim")
    shared = [step for step in forecast.steps if step.shared]
    if shared:
        branch = tree.add("[bold]shared[/]")
        _add(branch, shared, users=len(forecast.labels))
    for label in forecast.labels:
        own = forecast.own(label)
        if own:
            _add(tree.add(f"[bold]{escape(escaped(label))}[/]"), own)
    return tree


def _add(branch: Tree, steps: Iterable[Step], users: int = 0) -> None:
    for step in steps:
        state = step.standing.state
        parts = [f"[{_STYLE[state]}]{state}[/]", f"[bold]{escape(step.role)}[/]", str(step.artifact), work_of(step)]
        if step.shared and len(step.users) < users:
            parts.append(f"for {len(step.users)} of {users}")
        if step.estimate is not None:
            parts.append(duration(step.estimate.seconds))
        node = branch.add("  ".join(filter(None, parts)))
        if step.unknown:
            node.add(f"[yellow]not estimated: {escape(step.unknown)}[/]")
        reason = reason_of(step)
        if reason and not step.first:
            node.add(f"[dim]{escape(escaped(reason))}[/]")


def totals(forecast: Forecast, price: float | None = None) -> list[str]:
    """Return the lines below the tree: duration, GPU-hours, disk, price, where they come from, and notes."""
    lines = [f"[yellow]note:[/] {escape(escaped(note))}" for note in (*forecast.unplanned, *forecast.notes)]
    firsts = dict.fromkeys(step.artifact.stage for step in forecast.steps if step.first)
    if firsts:
        lines.append(f"[dim]made because no other one of the stage is complete on this root: {', '.join(firsts)}[/]")
    if not forecast.to_make:
        return [*lines, "[green]everything is complete: a run would make nothing[/]"]
    missing = ""
    if len(forecast.unknown) == len(forecast.to_make):
        return [*lines, "[yellow]nothing of what would be made can be estimated[/]"]
    if forecast.unknown:
        names = ", ".join(dict.fromkeys(step.role for step in forecast.unknown))
        missing = f", without {len(forecast.unknown)} artifacts that cannot be estimated ({names})"
    lines.append(f"[bold]time[/]       {duration(forecast.seconds)} on {forecast.machine}{escape(missing)}")
    lines.append(f"[bold]at a time[/]  {_places(forecast)}")
    spent = forecast.gpu_hours
    if spent.likely >= _LEAST_GPU_HOURS:
        where = "" if forecast.machine.gpus else ", if it ran on GPUs instead (--gpus N)"
        lines.append(f"[bold]GPU-hours[/]  {hours(spent)}{where}")
    lines.append(f"[bold]disk[/]       {size(forecast.disk)}")
    if price is not None:
        lines.append(f"[bold]price[/]      {money(spent * price)} at {price:g} per GPU-hour")
    return [*lines, f"[dim]estimated from {escape(escaped(_basis(forecast)))}[/]"]


def _places(forecast: Forecast) -> str:
    if forecast.places == 1:
        return "one stage after another, each on the whole machine"
    return f"up to {forecast.places} trainings side by side"


def _basis(forecast: Forecast) -> str:
    table = f"the figures of {TABLE}, which other machines gave"
    if not forecast.earlier_runs:
        return f"{table}; no earlier run on {forecast.root} tells better"
    runs = f"earlier runs on {forecast.root} ({forecast.earlier_runs} of {len(forecast.to_make)} artifacts)"
    return f"{runs}, the others from {table}" if forecast.from_table else runs


def content_of(forecast: Forecast, price: float | None = None) -> dict[str, Any]:
    """Return a forecast as plain JSON values; durations in seconds, sizes in bytes."""
    begins = forecast.schedule.begins
    spent = forecast.gpu_hours
    return {
        "name": forecast.name,
        "kind": forecast.kind,
        "root": str(forecast.root),
        "rows": list(forecast.labels),
        "machine": {"cpus": forecast.machine.cpus, "gpus": forecast.machine.gpus, "name": forecast.machine.name},
        "side_by_side": forecast.places,
        "artifacts": [_step(step, begins.get(step.artifact.id)) for step in forecast.steps],
        "waves": [list(wave) for wave in waves(forecast.schedule)],
        "total": {
            **{str(state): forecast.count(state) for state in State},
            "not_estimated": len(forecast.unknown),
            "seconds": forecast.seconds.content(),
            "gpu_hours": spent.content(4),
            "gpu_hours_of": "this machine" if forecast.machine.gpus else "one GPU, were there one",
            "bytes": forecast.disk.content(0),
            "price": None if price is None else _priced(spent, price),
            "estimated_from": _basis(forecast) if forecast.to_make else None,
        },
        "notes": [*forecast.unplanned, *forecast.notes],
    }


def _priced(spent: Span, price: float) -> dict[str, float]:
    return (spent * price).content(2)


def _step(step: Step, begins: float | None) -> dict[str, Any]:
    standing, estimate = step.standing, step.estimate
    return {
        "role": step.role,
        "artifact": str(step.artifact),
        "rows": list(step.users),
        "state": str(standing.state),
        "done": {standing.unit: standing.done} if standing.done else None,
        "running_elsewhere": standing.running,
        "why": reason_of(step) or None,
        "nearest": step.cause.nearest if step.cause else None,
        "differences": [
            {"name": one.name, "here": one.wanted, "there": one.found}
            for one in (step.cause.differences if step.cause else ())
        ],
        "images": step.work.images if step.work else None,
        "steps": step.work.steps if step.work else None,
        "assumed_sizes": list(step.work.assumed) if step.work else [],
        "begins": begins,
        "seconds": estimate.seconds.content() if estimate else None,
        "gpu_hours": estimate.gpu_hours.content(4) if estimate else None,
        "bytes": estimate.disk.content(0) if estimate else None,
        "estimated_from": estimate.basis if estimate else None,
        "earlier_runs": estimate.runs if estimate else 0,
        "not_estimated": step.unknown or None,
    }
