import pytest

from rayreid.pipeline.forecast.spans import NOTHING, Span, total


def test_measurements_span_their_ends_and_a_margin():
    assert Span.around([3.0, 1.0, 2.0], 2.0) == Span(0.5, 2.0, 6.0)


def test_spans_add_and_scale_end_by_end():
    assert total([Span(1, 2, 3), Span(10, 20, 30)]) == Span(11, 22, 33)
    assert Span(1, 2, 3) * 2 == Span(2, 4, 6)
    assert total([]) == NOTHING


def test_the_fastest_pace_takes_the_shortest_time():
    assert Span(50.0, 100.0, 200.0).over(1000) == Span(5.0, 10.0, 20.0)


def test_the_slower_of_two_counts():
    assert Span(1, 5, 9).at_least(Span(2, 3, 10)) == Span(2, 5, 10)


def test_it_is_written_as_plain_numbers():
    assert Span(1.26, 2.04, 3.0).content() == pytest.approx({"low": 1.3, "likely": 2.0, "high": 3.0})
