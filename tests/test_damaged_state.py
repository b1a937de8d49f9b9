"""Each kind of state file, damaged in each way: one line, or none; and a later command gets over it."""

import random
import shutil
from functools import partial

import pytest

import damaged_state
from damaged_state import STATE
from fuzzing import flipped, fuzzed
from rayreid.disk_faults import as_storage_error
from rayreid.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One whole file of each kind."""
    root = tmp_path_factory.mktemp("whole") / "root"
    damaged_state.write_whole(root)
    return root


def ended(kind, root) -> str:
    """How a command that reads this file ends: "" if well, or else the line that it prints.

    As `rayreid.cli.main` has it: anything else is a traceback.
    """
    try:
        kind.read(root)
    except UserError as error:
        return str(error)
    except Exception as error:
        told = as_storage_error(error, root)
        if told is None:
            raise
        return str(told)
    return ""


@pytest.mark.parametrize("name", STATE)
def test_no_damage_ends_in_a_traceback_or_blocks_a_root(name, whole, tmp_path, caplog):
    (path,) = whole.glob(STATE[name].path)
    check(name, damaged_state.damages(path.read_bytes(), STATE[name].form), whole, tmp_path, caplog)


@pytest.mark.parametrize("name", STATE)
@fuzzed(3, 100)
def test_no_random_damage_does(name, whole, tmp_path, caplog, rounds):
    (path,) = whole.glob(STATE[name].path)
    content, rng = path.read_bytes(), random.Random(name)
    contents = [flipped(content, rng) for _ in range(rounds)]
    cases = [(repr(bytes_), partial(damaged_state.written, bytes_)) for bytes_ in contents]
    check(name, cases, whole, tmp_path, caplog)


def check(name, cases, whole, tmp_path, caplog):
    """Give the file each kind of damage in turn, and read it as two commands would, one after the other."""
    kind = STATE[name]
    (path,) = whole.glob(kind.path)
    part = path.relative_to(whole).parts[0]
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    undamaged = ended(kind, root)
    for what, damage in cases:
        (shutil.rmtree if (root / part).is_dir() else type(root).unlink)(root / part)
        (shutil.copytree if (whole / part).is_dir() else shutil.copy)(whole / part, root / part)
        damage(root / path.relative_to(whole))
        caplog.clear()
        try:
            lines = [ended(kind, root), ended(kind, root)]
        except Exception as error:
            pytest.fail(f"{name}, {what}: {type(error).__name__}: {error}")
        assert "\n" not in "".join(lines), (what, lines)
        if lines[0] and not undamaged and what != "gone":  # a training's own failure is a line, too
            assert str(root) in lines[0] and any(word in lines[0] for word in damaged_state.REMEDIES), (what, lines)
        if kind.rebuilt and not (what == "a folder" and lines[1]):
            assert lines[1] == "", (what, lines)
        warned = [record.getMessage() for record in caplog.records if record.name == "rayreid"]
        assert all("\n" not in line and ": it is moved to " in line for line in warned), (what, warned)
        assert len(warned) <= 2, (what, warned)


def test_damage_to_one_entry_does_not_keep_the_others_from_delivery(whole, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    box = root / "undelivered" / damaged_state.RUN
    (box / "1.json").write_text('{"content": 1}')
    kind = STATE["outbox rows"]
    assert ended(kind, root) == ""
    assert sorted(path.name.split("-")[0] for path in box.iterdir()) == ["1", "1.json.damaged"]


def test_an_entry_cannot_name_a_file_outside_its_folder(whole, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    entry = root / "undelivered" / damaged_state.RUN / "1.json"
    entry.write_text(entry.read_text().replace('"a.png"', '"../../../tiny.yaml"'))
    assert ended(STATE["outbox artifact"], root) == ""
    assert (root / "tiny.yaml").exists()
