"""Experiment files with random faults: each is read or refused in one line, and nothing else ever happens."""

import random
from pathlib import Path

import pytest

from fuzzing import fuzzed
from rayreid.config.loading import dump, flatten, load_experiment, rows
from rayreid.errors import UserError

DEFAULTS = Path(__file__).parents[2] / "experiments" / "defaults.yaml"
SOURCES = ["pool={dataset: synthetic}", "target={dataset: synthetic}"]
LONG = 1000  # characters; a message must not repeat the input

VALUES = [
    *[
        "0",
        "-1",
        "1",
        "2",
        "0.5",
        "-0.5",
        "1e-300",
        "1e30",
        ".nan",
        ".inf",
        "-.inf",
        "true",
        "null",
        "auto",
        "none",
        "cfs",
        "1:30",
        "1_0",
        "0x1F",
        "2026-02-28",
        "2026-02-30",
    ],
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "9" * 5000,
    "'" + "x" * 10_000 + "'",
    "''",
    "[]",
    "{}",
    "[[]]",
    "[1, 2, 3]",
    "[0, 0]",
    "[9999, 9999]",
    "[1" + "0" * 30 + ", 1]",
    "{a: 1}",
    "{method: [usl]}",
    "- a",
    "a: b: c",
    "&a [*a]",
    "&a {b: *a}",
    "!!binary aGk=",
    "!!set {a}",
    "!!python/object:os.system x",
    "'$\\frac$'",
    '"\\x00\\n\\e[31m"',
    '"\\ud800"',
    "[" * 5000,
    "{a: " * 3000,
]


def accounted_for(read) -> bool:
    """Return whether an experiment was read; False if it was refused, which takes one line."""
    try:
        experiment = read()
        for row in rows(experiment).values():
            dump(row)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < LONG
        return False
    return True


@fuzzed(150, 400)
def test_a_key_with_any_value_is_read_or_refused(rounds):
    draw = random.Random(1)
    keys = list(flatten(load_experiment(DEFAULTS, SOURCES).model_dump(mode="python")))
    read = 0
    for _ in range(rounds):
        key = draw.choice(keys)
        if draw.random() < 0.2:
            key = draw.choice([key + ".x", key.rpartition(".")[0] or "pool", key.upper(), ".", f"compare.{key}"])
        changes = [f"{key}={draw.choice(VALUES)}"]
        read += accounted_for(lambda changes=changes: load_experiment(DEFAULTS, [*SOURCES, *changes]))
    assert 0 < read < rounds


@fuzzed(60, 400)
def test_a_file_with_damaged_bytes_is_read_or_refused(tmp_path, rounds):
    draw = random.Random(2)
    sound = DEFAULTS.read_bytes()
    file = tmp_path / "damaged.yaml"
    read = 0
    for _ in range(rounds):
        content = bytearray(sound)
        for _ in range(draw.choice([1, 1, 5])):
            place = draw.randrange(len(content))
            content[place : place + draw.choice([0, 1, 1, 30])] = draw.choice(
                [bytes([draw.randrange(256)]), b"", b"\n", b"\t", b": ", b"- ", b"&a ", b"*a ", b"{", b"]", b"\xff"]
            )
        file.write_bytes(content)
        read += accounted_for(lambda: load_experiment(file, SOURCES))
    assert 0 < read < rounds


@pytest.mark.parametrize("value", ["1" + "0" * 30, "1e30", str(2**63), "9" * 400])
def test_every_number_has_an_upper_bound(value):
    experiment = load_experiment(DEFAULTS, SOURCES)
    for key, default in flatten(experiment.model_dump(mode="python")).items():
        if isinstance(default, int | float) and not isinstance(default, bool) and ".options." not in key:
            with pytest.raises(UserError, match=key.split(".")[-1]):
                load_experiment(DEFAULTS, [*SOURCES, f"{key}={value}"])
