"""The journal of a training run."""

import pytest

from rayreid.files import guarded
from rayreid.storage.metrics_log import Journal


def test_rows_are_read_on_from_where_one_stopped(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    assert journal.read() == ([], 0)
    journal.append({"step": 0, "loss": 2.0})
    first, offset = journal.read()
    journal.append({"step": 1, "loss": 1.0})
    second, _ = journal.read(offset)
    assert [row["loss"] for row in first] == [2.0]
    assert [row["loss"] for row in second] == [1.0]


def test_a_line_torn_by_a_killed_worker_costs_only_itself(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 0})
    with journal.path.open("ab") as stream:
        stream.write(b'{"step": 1, "lo')
    assert [row["step"] for row in journal.read()[0]] == [0]
    journal.append({"step": 2})
    assert [row["step"] for row in journal.read()[0]] == [0, 2]


def test_the_history_keeps_the_later_row_of_a_step_run_twice(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    for step, loss in ((0, 3.0), (1, 2.0), (2, 9.0), (1, 2.0), (2, 1.5)):
        journal.append({"step": step, "loss": loss})
    assert [(row["step"], row["loss"]) for row in journal.history()] == [(0, 3.0), (1, 2.0), (2, 1.5)]


def test_rows_of_one_step_become_one(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    for row in ({"step": 1, "loss": 2.0}, {"step": 1, "probe": 0.5}, {"step": 1, "loss": 1.5}):
        journal.append(row)
    (row,) = journal.history()
    assert {name: row[name] for name in ("step", "loss", "probe")} == {"step": 1, "loss": 1.5, "probe": 0.5}


def test_rows_of_a_writer_that_has_lost_its_lease_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).append({"step": 0, "loss": 4.0})  # as files without numbers have them
    first, second = Journal(path, 1), Journal(path, 2)
    first.append({"step": 1, "loss": 3.0})
    second.append({"step": 1, "loss": 2.0})
    reader = Journal(path)
    rows, offset = reader.read()
    assert [row["loss"] for row in rows] == [4.0, 3.0, 2.0] and all("writer" not in row for row in rows)
    first.append({"step": 2, "loss": 9.0})  # it wakes
    assert reader.read(offset)[0] == []
    second.append({"step": 2, "loss": 1.0})
    assert [row["loss"] for row in reader.read(offset)[0]] == [1.0]
    assert [row["loss"] for row in Journal(path).history()] == [4.0, 2.0, 1.0]


def test_a_row_is_refused_to_who_may_not_write_to_the_folder(tmp_path):
    def refuse():
        raise PermissionError("taken over")

    with guarded(tmp_path, refuse), pytest.raises(PermissionError, match="taken over"):
        Journal(tmp_path / "metrics.jsonl", 1).append({"step": 0})
    assert list(tmp_path.iterdir()) == []
