"""The reference, generated from the code: keys from the pydantic models, commands from Typer, and all modules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic_core import PydanticUndefined

import rayreid
from rayreid.cli import app
from rayreid.config import ScoreTarget, Section, Source
from rayreid.config.schema import descriptions, json_schema, sections
from rayreid.config.section import ADDED, RUNTIME
from rayreid.selection.registry import STRATEGIES

UNITS = {
    "epochs": "epochs",
    "steps": "steps",
    "batch_size": "images",
    "count": "images",
    "probe_images": "images",
    "instances": "images",
    "identities": "identities",
    "img_size": "pixels",
    "local_size": "pixels",
    "padding": "pixels",
    "checkpoint_minutes": "minutes",
    "iterations": "steps",
    "workers": "processes",
    "cpus_per_worker": "CPUs",
    "depth": "blocks",
    "num_heads": "heads",
    "out_dim": "channels",
    "hidden_dim": "channels",
    "bottleneck_dim": "channels",
    "queue": "keys",
    "max_rank": "ranks",
    "trials": "trials",
    "max_concurrent": "trials",
    "max_failures": "restarts",
    "keep_checkpoints": "checkpoints",
    "fraction": "share of the pool",
    "max_rejected": "share of the images",
    "max_bad_fraction": "share of the images",
    "global_scale": "share of the area",
    "local_scale": "share of the area",
    "decay_every": "epochs",
    "triplet_start_epoch": "epochs",
    "stop_below_median": "epochs",
    "probe_every": "epochs",
    "evaluate_every": "epochs",
}
"""Units by key; a key that ends in `_epochs` is in epochs, and every other number has none."""

_OPTIONS = {
    key: [name for name, strategy in STRATEGIES.items() if key in strategy.options]
    for key in dict.fromkeys(key for strategy in STRATEGIES.values() for key in strategy.options)
}
"""Strategies that take each option of the section `select`."""
_ENTERS = {
    ("Experiment", ""): "by its keys",
    ("Experiment", "name"): "no",
    ("Experiment", "seed"): "yes",
    ("Experiment", "compare"): "no",
    ("Experiment", "matrix"): "no",
    ("Experiment", "sweep"): "no",
    ("Experiment", "seeds"): "no",
    ("Experiment", "resources"): "no",
    ("Matrix", ""): "no",
    ("MatrixTarget", "name"): "no",
    ("Range", ""): "no",
    ("Resources", ""): "no",
    ("Sweep", ""): "no",
    ("Backbone", "weights"): "by its content",
    ("Backbone", "strict"): "if changed",
    ("Checkpoint", "weights"): "by its content",
    ("Proxy", "source"): "by its content",
    ("Proxy", "target"): "by its content",
    ("Score", "targets"): "by its proxies",
    ("Select", "list"): "by its content",
    **{
        (section, key): f"with `{'`, `'.join(strategies)}`"
        for section in ("Select", "CombinedPart")
        for key, strategies in _OPTIONS.items()
    },
    ("CombinedPart", "list"): "by its content",
    ("Select", "token"): "with strategies by features",
    ("CombinedPart", "token"): "with strategies by features",
    ("Select", "parts"): "with `combine`",
}
"""What enters ids in another way than the marks of the fields say, by section and key; no key: all of the section."""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_ROOMS_LEFT_OUT = ("cli",)
"""Doors: their commands have a page of their own."""
LAST = "---\nsearch: {boost: 0.2}\n---\n\n"
"""Head of a page that a search lists after those written for readers."""
UNSEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
"""Head of a page that a search leaves out, because another page has the same."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of experiment files."""
    return json_schema()


def keys() -> str:
    """Return the page of all keys of an experiment file, a table per section."""
    parts = [
        "# Keys of an experiment file\n\nThis page is generated from the models in `rayreid.config`. *Enters ids* says "
        "whether another value makes another artifact; *runtime* keys change only how a stage runs; keys marked *if "
        "changed* enter only where they differ from the default. The pages under "
        "[Experiment files](../configuration.md) explain the keys by task. The same as a [JSON Schema]"
        "(../experiment.schema.json) lets editors complete and check a file.\n"
    ]
    whole = json_schema()
    for model in sections():
        name = model.__name__
        described = whole if name == "Experiment" else whole["$defs"][name]
        fields = _object(described)["properties"]
        told = descriptions(model)
        rows = [
            f"| `{key}` | {_value(key, fields[key])} | {_default(model, key)} | {_enters(model, key)} | "
            f"{_cell(told[key])} |\n"
            for key in model.model_fields
        ]
        summary = (model.__doc__ or "").strip().splitlines()[0]
        head = "| key | type, unit, bounds | default | enters ids | meaning |\n|---|---|---|---|---|\n"
        parts.append(f"## {name}\n\n{summary}\n\n{head}{''.join(rows)}")
    return "\n".join(parts)


def unit(key: str) -> str:
    """Return the unit of a key's number; empty if it has none."""
    return "epochs" if key.endswith("_epochs") else UNITS.get(key, "")


def commands() -> str:
    """Return the page of all commands with their arguments and options."""
    parts = ["# Commands\n\nThis page is generated from the command line. `rayreid COMMAND --help` prints the same.\n"]
    parts += [_command(name, command) for name, command in every_command()]
    return "\n".join(parts)


def every_command() -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with its name as it is typed after `rayreid`."""
    yield from _below("", typer.main.get_command(app))


def rooms() -> list[str]:
    """Return the names of the rooms of the package and of its single modules."""
    package = Path(rayreid.__file__).parent
    folders = [path.parent.name for path in package.glob("*/__init__.py")]
    modules = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    return sorted(set(folders) - set(_ROOMS_LEFT_OUT)) + sorted(modules)


def python(room: str) -> str:
    """Return the page of a room: its modules, from their docstrings."""
    place = Path(rayreid.__file__).parent / room
    if not place.is_dir():
        return f"{LAST}# rayreid.{room}\n\n::: rayreid.{room}\n    options: {{show_root_heading: false}}\n"
    files = sorted(path for path in place.rglob("*.py") if path.name != "__main__.py")
    names = [".".join(path.relative_to(place.parent).with_suffix("").parts) for path in files]
    modules = [f"::: rayreid.{name.removesuffix('.__init__')}\n" for name in names]
    head = UNSEARCHED if room == "config" else LAST
    return f"{head}# rayreid.{room}\n\n" + "\n".join(modules)


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for inner, one in command.commands.items():
        yield from _below(f"{name} {inner}".strip(), one)


def _command(name: str, command: Any) -> str:
    usage = " ".join(_usage(parameter) for parameter in command.params)
    rows = [f"| {_names(one)} | {_cell(getattr(one, 'help', '') or '')} |\n" for one in command.params]
    table = "| argument | meaning |\n|---|---|\n" + "".join(rows)
    return f"## rayreid {name}\n\n{command.help}\n\n```text\nrayreid {name} {usage}\n```\n\n{table if rows else ''}"


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
        return f"[{parameter.opts[0]}{value}]"
    return parameter.metavar or (parameter.name or "").upper()


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return ", ".join(f"`{one}`" for one in [*parameter.opts, *parameter.secondary_opts])
    return f"`{_usage(parameter)}`"


def _object(described: dict[str, Any]) -> dict[str, Any]:
    """Return the form of a section that is a mapping, where a word is another form."""
    return next(one for one in [described, *described.get("anyOf", [])] if "properties" in one)


def _kind(field: dict[str, Any]) -> str:
    """Return the types of a field in words, from its part of the schema."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one) for one in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "prefixItems" in field:
        return f"[{', '.join(_kind(one) for one in field['prefixItems'])}]"
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    if field.get("type") == "object":
        return "mapping"
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    return names.get(field.get("type", ""), "any value")


def _bounds(field: dict[str, Any]) -> str:
    """Return the bounds of a field's numbers, those of a list's entries included."""
    forms = [field, *field.get("anyOf", [])]
    forms += [one for form in forms for one in form.get("prefixItems", [])[:1]]
    told = [f"{sign} {form[key]:,}" for form in forms for key, sign in _BOUNDS.items() if key in form]
    return ", ".join(dict.fromkeys(told))


def _default(model: type[Section], key: str) -> str:
    field = model.model_fields[key]
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return "its defaults"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True).removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


def _enters(model: type[Section], key: str) -> str:
    told = _ENTERS.get((model.__name__, key)) or _ENTERS.get((model.__name__, ""))
    if told is not None:
        return told
    marked = Source if model is ScoreTarget and key in Source.model_fields else model
    marks = marked.model_fields[key].metadata
    return "runtime" if RUNTIME in marks else "if changed" if ADDED in marks else "yes"


def _value(key: str, field: dict[str, Any]) -> str:
    return "; ".join(filter(None, (_kind(field), unit(key), _bounds(field))))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
