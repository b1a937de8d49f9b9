import io

import pytest
from rich.console import Console

from rayreid.console import Screen


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
