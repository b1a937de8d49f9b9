"""The JSON Schema of experiment files, with which editors complete and check keys."""

import ast
import inspect
import textwrap
from typing import Any

from pydantic import BaseModel

from rayreid.config import Experiment
from rayreid.config.adaptation import Adapt
from rayreid.config.inputs import Checkpoint
from rayreid.config.pretraining import Pretrain
from rayreid.config.section import Section

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_WORDS: dict[type[Section], dict[str, Any]] = {
    Pretrain: {"enum": ["none", "dino", "mocov3", "mocov2", "moby"]},
    Adapt: {"enum": ["none", "usl", "uda"]},
    Checkpoint: {"type": "string"},
}
"""What may stand in place of a whole section: `pretrain: none` is short for `pretrain: {method: none}`."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of an experiment file, as its author writes it.

    The file may leave out what `extends` brings, so no key is required. Rows and overrides with dotted keys are not
    described. What depends on several keys, such as the method that a key belongs to, is checked by `load_experiment`
    alone.
    """
    schema = Experiment.model_json_schema(mode="validation")
    models = {model.__name__: model for model in sections()}
    for name, definition in [("Experiment", schema), *schema["$defs"].items()]:
        definition.pop("required", None)
        _describe(definition, models[name])
    for model, word in _WORDS.items():
        name = model.__name__
        section = schema["$defs"][name]
        schema["$defs"][name] = {"description": section.pop("description"), "anyOf": [section, word]}
    rerank = schema["$defs"]["Evaluate"]["properties"]["rerank"]
    rerank["anyOf"] = [one for one in rerank["anyOf"] if one.get("const") is not False] + [{"type": "boolean"}]
    extends = {
        "type": "string",
        "description": "File that this one changes; its path is relative to this one's folder.",
    }
    return {
        "$schema": _DIALECT,
        **schema,
        "title": "rayreid experiment",
        "properties": {"extends": extends, **schema["properties"]},
    }


def sections() -> list[type[Section]]:
    """Return the models of a file: the whole file first, then every section that occurs in it, by name."""
    inside = Experiment.model_json_schema()["$defs"]
    return [Experiment, *sorted((one for one in _subclasses(Section) if one.__name__ in inside), key=_name)]


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings below a model's fields, by field, those of its parents included."""
    told: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                told[field.target.id] = " ".join(str(below.value.value).split())
    return told


def _describe(definition: dict[str, Any], model: type[Section]) -> None:
    told = descriptions(model)
    for key, described in definition["properties"].items():
        described.pop("title", None)
        if key in told:
            described["description"] = told[key]


def _subclasses(model: type[Section]) -> list[type[Section]]:
    return [one for kind in model.__subclasses__() for one in [kind, *_subclasses(kind)]]


def _name(model: type[Section]) -> str:
    return model.__name__
