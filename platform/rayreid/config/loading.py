"""Reading experiment files: inheritance (`extends`), overrides (`key.path=value`), rows, and plain errors."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rayreid.config import Experiment
from rayreid.config.method_defaults import OWN_KEYS, PUBLISHED
from rayreid.errors import UserError, one_line

_PROXY_INHERITS = ("seed", "backbone", "pretrain", "finetune")
_WAYS = ("usl", "uda")
_METHODS = ("none", *_WAYS)
"""Words that stand for a section with that method."""
_BRANCH = re.compile(r"constrained-\w+|(literal|tuple|list)\[.*\]|function-.*|Range")
"""What pydantic adds to a location for the branch of a union that it tried; no key of the file."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and resolve it.

    Args:
        path: YAML file; `extends: other.yaml` is looked up beside it.
        overrides: `key.path=value` strings, the value in YAML.

    Raises:
        UserError: a missing file, unknown key, wrong type or value out of range; names the file and key.
    """
    source = str(path)
    tree = _read(Path(path))
    over: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: write key.path=value, e.g. select.fraction=0.25")
        over = _merge(over, _nest(key, _parse(value, f"override {override!r}")))
    tree = _merge(tree, over)
    proxy = tree.get("proxy") or {}
    if isinstance(proxy, Mapping):
        inherited = {name: tree[name] for name in _PROXY_INHERITS if name in tree}
        tree = {**tree, "proxy": _merge(inherited, proxy)}
    return _validate(tree, source)


def change(experiment: Experiment, changes: Mapping[str, Any], source: str = "compare") -> Experiment:
    """The experiment with some keys changed (dotted or nested), everything else, the proxies included, as it was.

    Raises:
        UserError: a key or value that an experiment file may not hold.
    """
    over: dict[str, Any] = {}
    for key, value in changes.items():
        over = _merge(over, _nest(key, value))
    return _validate(_merge(experiment.model_dump(mode="python"), over), source)


def rows(experiment: Experiment) -> dict[str, Experiment]:
    """The rows of `compare` by label (one row, labelled with the experiment's name, where there are none)."""
    alone = experiment.model_copy(update={"compare": [], "sweep": None})
    if not experiment.compare:
        return {experiment.name: alone}
    table: dict[str, Experiment] = {}
    for number, row in enumerate(experiment.compare):
        changes = {key: value for key, value in row.items() if key != "label"}
        label = str(row.get("label") or describe(changes))
        if label in table:
            raise UserError(f"compare[{number}]: the label {label!r} is used twice")
        table[label] = change(alone, changes, f"compare[{number}]")
    return table


def describe(changes: Mapping[str, Any]) -> str:
    """A row's or trial's name from what it changes, e.g. `select.fraction=0.5, backbone.stem=ics`."""
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "as in the file"


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, as it is written beside the outputs."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys (`pretrain.epochs`)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: an experiment file is a mapping of sections, this holds {type(tree).__name__}")
    base = tree.pop("extends", None)
    return tree if base is None else _merge(_read(path.parent / str(base), (*seen, path.resolve())), tree)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({one_line(error, 'all')})") from None


def _merge(base: Any, over: Any) -> Any:
    """Mappings are merged key by key; anything else in `over` replaces what stood there.

    A section given as a word (`pretrain: none`) keeps that method when further keys of it are changed, and one that is
    given a word that says how (`adapt: usl`) keeps its other keys. A section that names another dataset starts afresh:
    the root and options that stood there were the old dataset's. So do the keys of `pretrain` that are the method's own
    where it names another method.
    """
    if base in _METHODS and isinstance(over, Mapping):
        base = {"method": base}
    if over in _WAYS and isinstance(base, Mapping):
        over = {"method": over}
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        if "dataset" in base and over.get("dataset", base["dataset"]) != base["dataset"]:
            return dict(over)
        if _another_method(base, over):
            base = {key: value for key, value in base.items() if key not in OWN_KEYS}
        merged = dict(base)
        for key, value in over.items():
            merged[key] = _merge(base[key], value) if key in base else value
        return merged
    return over


def _another_method(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether `over` changes one pre-training method for another; `none` is no method, it has no keys of its own."""
    old, new = base.get("method", "dino"), over.get("method")
    return new in PUBLISHED and old in PUBLISHED and new != old


def _nest(dotted: str, value: Any) -> dict[str, Any]:
    for key in reversed(str(dotted).split(".")):
        value = {key: value}
    return value


def _validate(tree: Any, source: str) -> Experiment:
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        found: dict[str, Any] = {}
        for problem in error.errors():
            found.setdefault(_key(problem["loc"]), problem)
        # What the proxies inherit is wrong there too: it is named where the file says it. And where one form of a
        # value has a fault inside, that it is not the other form (`auto`) either says nothing.
        problems = [
            found[key]
            for key in found
            if key.removeprefix("proxy.") not in found.keys() - {key}
            and not any(other.startswith(f"{key}.") for other in found)
        ]
        # An unknown key says most: a misspelt section also makes others "missing".
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_explain(problems[0])}{more}") from None


def _key(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location if not _BRANCH.fullmatch(str(part)))


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"] if not _BRANCH.fullmatch(str(part))]
    key = _key(location)
    if problem["type"] == "extra_forbidden":
        names = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]} (found {problem['input']!r})"


def _keys_at(location: Sequence[str]) -> list[str]:
    section: Any = Experiment
    for part in location:
        if part.isdigit():  # a place in a list of sections
            continue
        annotation = section.model_fields[part].annotation
        section = next((kind for kind in (annotation, *get_args(annotation)) if _is_section(kind)), None)
        if section is None:
            return []
    return list(section.model_fields)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
