"""The artifacts of an output root on the terminal, and everything that is known of one of them."""

import difflib
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from rayreid import forms
from rayreid.config.loading import flatten
from rayreid.console import Screen, clock
from rayreid.errors import UserError, escaped
from rayreid.housekeeping.references import References
from rayreid.pipeline.forecast.standings import is_held
from rayreid.pipeline.forecast.wording import bytes_of
from rayreid.storage.contents import LEASE
from rayreid.storage.inventory import Inventory, Stored

_LEAST_PREFIX = 4
"""Digits of an id that name an artifact, if no other begins with them."""
_FILES = 12
_COLUMNS = {"artifact": 21, "state": 10, "size": 7, "finished": 16, "used by": 12}
"""Titles of the list's columns, with the least widths."""
_WIDTH = 12


def state_of(stored: Stored) -> str:
    """Return whether an artifact is complete, being made, damaged or unfinished."""
    if is_held(stored.folder / LEASE):
        return "being made"
    if stored.record is not None:
        return "complete"
    return "damaged" if stored.fault else "unfinished"


def contents(inventory: Inventory, known: References) -> list[dict[str, Any]]:
    """Return the artifacts as plain values, the largest first."""
    return [
        {
            "artifact": str(one),
            "state": state_of(one),
            "bytes": one.size,
            "finished": one.record.facts.get("finished") if one.record else None,
            "used_by": list(known.of(one.id)),
        }
        for one in sorted(inventory.folders, key=lambda one: -one.size)
    ]


def show_list(screen: Screen, inventory: Inventory, known: References) -> None:
    """Print the artifacts with their sizes and what refers to them, and the total."""
    if not inventory.folders:
        screen.say(escape(f"{inventory.root}: there is no artifact"))
        return
    table = Table(header_style="bold", pad_edge=False, box=None)
    for title, width in _COLUMNS.items():
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=True, min_width=width)
    for one in contents(inventory, known):
        used = [escaped(name) for name in one["used_by"]]
        shown = f"{used[0]}{f' and {len(used) - 1} more' if len(used) > 1 else ''}" if used else "nothing"
        finished = escape(escaped(str(one["finished"] or "")[:16].replace("T", " ")))
        table.add_row(one["artifact"], one["state"], bytes_of(one["bytes"]), finished, escape(shown))
    screen.wide(table)
    size = sum(one.size for one in inventory.folders)
    screen.say(
        f"{len(inventory.folders):,} artifacts, {bytes_of(size)}; rayreid artifacts gc deletes what nothing uses"
    )


def find(inventory: Inventory, name: str) -> Stored:
    """Return an artifact by `stage/id`, by its id, or by the beginning of its id.

    Raises:
        UserError: There is none, or several begin so.
    """
    stage, _, identifier = name.strip("/").rpartition("/")
    stage = stage.rpartition("/")[2]  # a path names it, too
    of_stage = [one for one in inventory.folders if stage in ("", one.stage)]
    exact = [one for one in of_stage if one.id == identifier]
    begun = [one for one in of_stage if len(identifier) >= _LEAST_PREFIX and one.id.startswith(identifier)]
    found = exact or begun
    if len(found) == 1:
        return found[0]
    shown = escaped(name)
    if found:
        raise UserError(f"{shown}: several artifacts begin so: {', '.join(map(str, found[:5]))}; give more digits")
    if not inventory.folders:
        raise UserError(f"{shown}: there is no artifact in {inventory.root}; see RAYREID_ROOT")
    names = {text: one for one in inventory.folders for text in (one.id, str(one))}
    near = dict.fromkeys(str(names[close]) for close in difflib.get_close_matches(name, names, n=6, cutoff=0.4))
    hint = f"did you mean {', '.join(list(near)[:3])}?" if near else "rayreid artifacts list shows all"
    raise UserError(f"{shown}: there is no such artifact in {inventory.root}; {hint}")


def content_of(stored: Stored, known: References) -> dict[str, Any]:
    """Return all that is known of an artifact, as plain values."""
    record = stored.record
    return {
        "artifact": str(stored),
        "state": state_of(stored),
        "fault": stored.fault or None,
        "bytes": stored.size,
        "folder": str(stored.folder),
        "recipe": dict(record.recipe) if record else None,
        "facts": record.facts if record else None,
        "made_by": dict(record.made_by) if record else None,
        "files": {name: entry.size for name, entry in (record.files or {}).items()} if record else None,
        "used_by": list(known.of(stored.id)),
    }


def show(screen: Screen, stored: Stored, known: References) -> None:
    """Print all that is known of an artifact: what it was made of and by, its facts, its files and who uses it."""
    screen.say(f"[bold]{stored}[/]  {state_of(stored)}, {bytes_of(stored.size)}")
    _show_facts(screen, {"folder": stored.folder, "damage": stored.fault})
    if stored.record is not None:
        facts, made_by = stored.record.facts, stored.record.made_by
        seconds, versions = facts.get("seconds"), made_by.get("versions")
        _show_facts(
            screen,
            {
                "finished": facts.get("finished"),
                "time": clock(seconds) if isinstance(seconds, int | float) and not forms.finite(seconds) else "",
                "commit": facts.get("git_sha"),
                "command": made_by.get("command"),
                "host": made_by.get("host"),
                "versions": _pairs(versions) if isinstance(versions, dict) else versions,
                "MLflow run": facts.get("run"),
            },
        )
        _show_recipe(screen, stored.record.recipe)
        _show_values(screen, "facts", facts)
        _show_values(screen, "files", {name: bytes_of(entry.size) for name, entry in _largest(stored)})
    used = known.of(stored.id)
    screen.say(f"[bold]used by[/]{'' if used else '  nothing'}")
    for name in used:
        screen.say(f"  {escape(escaped(name))}")


def _show_facts(screen: Screen, values: Mapping[str, Any]) -> None:
    screen.facts({name: escaped(str(value)) if value else "" for name, value in values.items()}, _WIDTH)


def _show_recipe(screen: Screen, recipe: Mapping[str, Any]) -> None:
    _show_values(screen, f"made of (version {recipe.get('version')} of {recipe['stage']})", recipe["inputs"])
    _show_values(screen, "fields", flatten(recipe["fields"]))


def _show_values(screen: Screen, title: str, values: Mapping[str, Any]) -> None:
    if values:
        screen.say(f"[bold]{escape(escaped(title))}[/]")
        width = max(map(len, values)) + 2
        for name, value in values.items():
            screen.say(escape(escaped(f"  {name:<{width}}{value}")))


def _largest(stored: Stored) -> list[tuple[str, Any]]:
    files = (stored.record.files or {}).items() if stored.record else ()
    return sorted(files, key=lambda item: -item[1].size)[:_FILES]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
