"""The journal of a training run."""

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
