"""Cells that a spreadsheet would compute."""

import csv
import io

import pytest

from rayreid.pipeline.csv_text import cell, csv_of


@pytest.mark.parametrize(
    "text", ["=1+1", '=HYPERLINK("http://a")', "+CFS", "-random", "@sum", "\t=1", "\r=1", "\n=1", "＝1"]
)
def test_a_text_that_looks_like_a_formula_is_marked(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["none", "CFS = half", "-0.5", "+1e3", "", 3, -0.25, None])
def test_other_texts_and_numbers_stay(value):
    assert cell(value) == value


def test_rows_come_back_with_commas_quotes_and_missing_values():
    text = csv_of(["row", "mAP"], [{"row": 'a, "b"', "mAP": -0.5}, {"row": "=a"}])
    assert list(csv.DictReader(io.StringIO(text))) == [{"row": 'a, "b"', "mAP": "-0.5"}, {"row": "'=a", "mAP": ""}]
    assert csv_of(["row"], [{"row": "x"}], header=False) == "x\n"
