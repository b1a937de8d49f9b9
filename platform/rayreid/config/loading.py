"""Reading experiment files: inheritance (`extends`), overrides (`key.path=value`), rows and error messages."""

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import ValidationError

from rayreid.config import Experiment, Section
from rayreid.config.method_defaults import OWN_KEYS, PUBLISHED
from rayreid.config.selection import rules_inside
from rayreid.config.yaml_text import parse_yaml
from rayreid.errors import UserError, escaped

_PROXY_INHERITS = ("seed", "backbone", "pretrain", "finetune")
_WAYS = ("usl", "uda")
_METHODS = ("none", *_WAYS)
"""Values of a section that are short for the section with that method."""
_BRANCH = re.compile(r"constrained-\w+|(literal|tuple|list)\[.*\]|function-.*|Range")
"""Parts that pydantic adds to an error's location for each branch of a union that it tried; they are not keys of the
file."""

_WITH_RULES = re.compile(r"select\.(parts\.\d+\.)?")
"""Places of sections whose rules stand in `rules` or beside it."""

_SHORT = reprlib.Repr()
"""Shows values in messages; a value may be as long as a file."""
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and resolve an experiment file.

    Args:
        path: YAML file. `extends: other.yaml` is resolved relative to its folder.
        overrides: Strings `key.path=value`; the value is YAML.

    Raises:
        UserError: The file is missing, a key is unknown, or a value has the wrong type or is out of range. The message
            names the file and the key.
    """
    source = str(path)
    tree = _read(Path(path))
    over: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {_SHORT.repr(override)}: write key.path=value, e.g. select.fraction=0.25")
        over = _merge(over, _nest(key, parse_yaml(value, f"override {_SHORT.repr(override)}")), source)
    tree = _merge(tree, over, source)
    proxy = tree.get("proxy") or {}
    if isinstance(proxy, Mapping):
        inherited = {name: tree[name] for name in _PROXY_INHERITS if name in tree}
        tree = {**tree, "proxy": _merge(inherited, proxy, source, "proxy.")}
    return _validate(tree, source)


def change(experiment: Experiment, changes: Mapping[str, Any], source: str = "compare") -> Experiment:
    """Return the experiment with some keys changed (dotted or nested); all others stay the same, also in the proxies.

    Raises:
        UserError: A key or value is not allowed in an experiment file.
    """
    over: dict[str, Any] = {}
    for key, value in changes.items():
        over = _merge(over, _nest(key, value), source)
    return _validate(_merge(experiment.model_dump(mode="python"), over, source), source)


def rows(experiment: Experiment) -> dict[str, Experiment]:
    """Return the experiments of a file by label: the rows of `compare`, or with `seeds` each row once per seed.

    Without `compare` the file is the only row, labelled with the experiment's name. All rows with the first seed come
    before those with the second, so that a run that is stopped leaves whole comparisons.

    Raises:
        UserError: A key or value is not allowed in a row, or two rows have the same label.
    """
    table = _table(experiment)
    if not experiment.seeds:
        return table
    return {
        _seeded(label, seed): change(row, {"seed": seed}, "seeds")
        for seed in experiment.seeds
        for label, row in table.items()
    }


def row_labels(experiment: Experiment) -> dict[str, str]:
    """Return, for each label in `rows`, the label of its row: the same one, or with `seeds` that without the seed."""
    labels = list(_table(experiment))
    if not experiment.seeds:
        return dict(zip(labels, labels, strict=True))
    return {_seeded(label, seed): label for seed in experiment.seeds for label in labels}


def _seeded(label: str, seed: int) -> str:
    return f"{label} · seed {seed}"


def _table(experiment: Experiment) -> dict[str, Experiment]:
    """Return the rows of `compare` by label, with the seed of the file."""
    if not experiment.compare:
        return {experiment.name: experiment.alone}
    table: dict[str, Experiment] = {}
    for number, row in enumerate(experiment.compare):
        changes = {key: value for key, value in row.items() if key != "label"}
        if "seeds" in changes:
            raise UserError(f"compare[{number}]: seeds belong to the whole file; write them beside compare")
        if experiment.seeds and "seed" in changes:
            raise UserError(f"compare[{number}]: seed={changes['seed']}, but seeds sets it in every row; leave one out")
        label = escaped(str(row.get("label") or describe(changes)))  # it goes to terminals and into one-line messages
        if label in table:
            raise UserError(f"compare[{number}]: the label {label!r} is used twice")
        table[label] = change(experiment.alone, changes, f"compare[{number}]")
    return table


def describe(changes: Mapping[str, Any]) -> str:
    """Return the name of a row or trial, made from its changes, e.g. `select.fraction=0.5, backbone.stem=ics`."""
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "as in the file"


def dump(experiment: Experiment) -> str:
    """Return the resolved experiment as YAML, in the form that is written next to the outputs."""
    return to_yaml(experiment.model_dump(mode="json"))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return nested mappings as YAML, in their order."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings, also in lists, as one with dotted keys (`pretrain.epochs`, `select.parts.0.weight`)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list | tuple) and value and all(isinstance(entry, Mapping) for entry in value):
            value = {str(index): entry for index, entry in enumerate(value)}
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
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: an experiment file is a mapping of sections, this is a {type(tree).__name__}")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    merged: dict[str, Any] = _merge(_read(path.parent / str(base), (*seen, path.resolve())), tree, str(path))
    return merged


def _merge(base: Any, over: Any, source: str, place: str = "") -> Any:
    """Merge mappings key by key; any other value in `over` replaces the value in `base`.

    A mapping of indices to values changes these entries of a list, as `select.parts.0.weight` does. `source` and
    `place` are where `over` stands, in messages.

    A section given as a word (`pretrain: none`) keeps that method when more of its keys are changed, and a section to
    which a word is given (`adapt: usl`) keeps its other keys. A rule of `quality` replaces the same one, whether either
    stands in `rules` or beside it. A section that names another dataset starts afresh, because its previous root and
    options belonged to the old dataset. Likewise, if `pretrain` names another method, the keys that are specific to the
    old method are dropped. A length in `epochs` replaces one in `steps`.
    """
    if base in _METHODS and isinstance(over, Mapping):
        base = {"method": base}
    if over in _WAYS and isinstance(base, Mapping):
        over = {"method": over}
    if isinstance(base, list | tuple) and isinstance(over, Mapping) and over and all(map(_is_index, over)):
        return _merge_entries(base, over, source, place)
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        if _WITH_RULES.fullmatch(place):
            base, over = rules_inside(base), rules_inside(over)
        if "dataset" in base and over.get("dataset", base["dataset"]) != base["dataset"]:
            return dict(over)
        if _another_method(base, over):
            base = {key: value for key, value in base.items() if key not in OWN_KEYS}
        if "epochs" in over and "steps" not in over:
            base = {key: value for key, value in base.items() if key != "steps"}
        merged = dict(base)
        for key, value in over.items():
            merged[key] = _merge(base[key], value, source, f"{place}{key}.") if key in base else value
        return merged
    return over


def _merge_entries(base: Sequence[Any], over: Mapping[Any, Any], source: str, place: str) -> list[Any]:
    """Merge new values into the entries of a list, by index.

    Raises:
        UserError: The list has no such entry.
    """
    merged = list(base)
    for index, value in over.items():
        if int(index) >= len(merged):
            raise UserError(f"{source}: {place}{index}: there is no such entry; the list has {len(merged)}, from 0")
        merged[int(index)] = _merge(merged[int(index)], value, source, f"{place}{index}.")
    return merged


def _is_index(key: Any) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", str(key)) is not None


def _is_number(key: Any) -> bool:
    return re.fullmatch(r"-?[0-9]+", str(key)) is not None


def _another_method(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Return whether `over` replaces one pre-training method by another.

    `none` is not a method and has no keys of its own.
    """
    old, new = base.get("method", "dino"), over.get("method")
    return all(isinstance(one, str) and one in PUBLISHED for one in (old, new)) and new != old


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
        # A mistake that the proxies inherit is also reported for them; it is named where the file has it. If one form
        # of a value has a mistake inside, the error that it is not the other form (`auto`) adds nothing.
        problems = [
            found[key]
            for key in found
            if key.removeprefix("proxy.") not in found.keys() - {key}
            and not any(other.startswith(f"{key}.") for other in found)
        ]
        # An unknown key is the most helpful problem: a misspelt section also makes others "missing".
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_explain(problems[0])}{more}") from None


def _key(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location if not _BRANCH.fullmatch(str(part)))


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"] if not _BRANCH.fullmatch(str(part))]
    key = _key(location)
    if problem["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        names = list(section.model_fields) if section else []
        also = section.also if section else ()
        close = difflib.get_close_matches(location[-1], [*names, *also], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    found = problem["input"]
    if problem["type"] in ("tuple_type", "list_type") and isinstance(found, Mapping) and all(map(_is_number, found)):
        return f"{key}: an index changes an entry of a list that the file gives; give the whole list"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]} (found {_SHORT.repr(problem['input'])})"


def _section_at(location: Sequence[str]) -> type[Section] | None:
    section: Any = Experiment
    for part in location:
        if part.isdigit():  # an index into a list of sections
            continue
        annotation = section.model_fields[part].annotation
        section = next((kind for kind in (annotation, *get_args(annotation)) if _is_section(kind)), None)
        if section is None:
            return None
    return cast("type[Section]", section)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
