"""The JSON Schema of experiment files: it accepts what can be read, and refuses what editors should mark."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from rayreid.cli import main
from rayreid.config import Experiment, Section
from rayreid.config.schema import descriptions, json_schema, sections

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def faults(text: str) -> list[str]:
    return [error.json_path for error in VALIDATOR.iter_errors(yaml.safe_load(text))]


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_file_is_valid(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "pretrain: none",
        "adapt: usl",
        "proxy: {source: a.pth, target: {weights: b.pth, mean: [0.5, 0.5, 0.5]}}",
        "evaluate: {rerank: true}",
        "evaluate: {rerank: {k1: 10}}",
        "sweep: {search: random, trials: 3, parameters: {finetune.lr: {loguniform: [1.0e-4, 1.0]}}}",
        "backbone: {img_size: [128, 64], depth: null}",
        "compare: [{label: a, pretrain: none}, {select.fraction: 1.0}]",
    ],
)
def test_short_forms_are_valid(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("pretrian: {epochs: 3}", "$"),
        ("select: {fracton: 0.5}", "$.select"),
        ("select: {fraction: 1.5}", "$.select.fraction"),
        ("select: {strategy: best}", "$.select.strategy"),
        ("pretrain: {epochs: many}", "$.pretrain"),
        ("adapt: dino", "$.adapt"),
        ("backbone: {img_size: [128]}", "$.backbone.img_size"),
        ("extends: 3", "$.extends"),
    ],
)
def test_a_wrong_key_or_value_is_marked(text, place):
    assert faults(text) == [place]


@pytest.mark.parametrize("model", sections(), ids=lambda model: model.__name__)
def test_every_key_is_explained(model: type[Section]):
    told = descriptions(model)
    assert set(told) >= set(model.model_fields)
    assert all(re.search(r"\w.*[.)]$", told[key]) for key in model.model_fields)


def test_keys_have_their_docstrings_and_defaults():
    fraction = json_schema()["$defs"]["Select"]["properties"]["fraction"]
    assert fraction["description"].startswith("Share of the pool") and fraction["default"] == 0.5
    assert (fraction["exclusiveMinimum"], fraction["maximum"]) == (0, 1)
    assert set(json_schema()["properties"]) == {"extends", *Experiment.model_fields}


def test_the_command_prints_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["schema"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == json_schema()
