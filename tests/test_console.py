import io
import json

import pytest
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from rayreid.console import Screen, any_encoding, json_of


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rayreid.console.time.monotonic", lambda: now[0])
    return now


def shown(clock, terminal: bool, *reports: tuple[float, int]) -> str:
    """What stands on the screen after reports of (second, steps done) of 1,000 steps."""
    stream = io.StringIO()
    with Screen(Console(file=stream, force_terminal=terminal, width=160)).bar("pretrain", 1000) as bar:
        for second, done in reports:
            clock[0] = second
            bar.to(done, "loss 2.0")
        if bar._live is not None:
            bar._live.refresh()
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_left_counts_from_the_first_report(clock, terminal):
    # A resumed run: 500 steps are an earlier process's. 100 steps in 200 s leave 800 s for 400.
    text = shown(clock, terminal, (60.0, 500), (160.0, 550), (260.0, 600))
    assert "600/1000" in text and "13:20 left  loss 2.0" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_it_is_known_though_reports_are_a_minute_apart(clock, terminal):
    assert "14:40 left" in shown(clock, terminal, (0.0, 0), (60.0, 60), (120.0, 120))


@pytest.mark.parametrize("terminal", [True, False])
def test_before_a_second_report_nothing_is_guessed(clock, terminal):
    assert "left" not in shown(clock, terminal, (60.0, 500))


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("latin-1", "> + x 2 × 3 -> \xfc ? ..."),
        ("ascii", "> + x 2 x 3 -> ? ? ..."),
        ("utf-8", "▸ ✓ ✗ 2 × 3 → ü 人 …"),
    ],
)
def test_symbols_that_an_encoding_does_not_have_are_replaced(encoding, shown):
    raw = io.BytesIO()
    stream = any_encoding(io.TextIOWrapper(raw, encoding=encoding))
    Screen(Console(file=stream)).say("▸ ✓ ✗ 2 × 3 → ü 人 …")
    stream.flush()
    assert raw.getvalue().decode(encoding) == shown + "\n"


def test_a_file_name_that_is_not_utf8_is_shown():
    stream = any_encoding(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    stream.write("caffe\udce9.jpg")
    stream.flush()
    assert stream.buffer.getvalue() == b"caffe?.jpg"


def test_a_screen_prints_to_a_terminal_of_any_encoding(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    with Screen().bar("▸", 3) as bar:
        bar.to(3)
    Screen().say("✓")
    stream.flush()
    assert stream.buffer.getvalue() == b"+\n"


def test_credentials_are_masked_in_lines_tables_trees_and_json(capsys):
    link = "s3://AKuser:hunter2pw@store/images"
    table, tree = Table(title=link), Tree(f"[bold]{link}[/]")
    table.add_column(link)
    table.add_row(link)
    tree.add("shared").add(link)
    screen = Screen()
    screen.say(link)
    screen.wide(tree)
    screen.wide(table)
    screen.console.print(table)
    text = capsys.readouterr().out
    assert "hunter2" not in text and text.count("s3://***@store/images") == 9
    assert json.loads(json_of({"a": [{"here": link}]})) == {"a": [{"here": "s3://***@store/images"}]}


def test_a_narrow_terminal_does_not_uncover_a_credential(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    Screen().wide(Tree("s3://AKuser:hunter2pw@store"))
    assert "hunter" not in capsys.readouterr().out
