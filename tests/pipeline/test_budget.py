import pytest

from rayreid.config import Experiment
from rayreid.pipeline.budget import budget_note, budget_of

SOURCES = {"pool": {"dataset": "synthetic"}, "target": {"dataset": "synthetic"}}


@pytest.mark.parametrize(
    ("pretrain", "budget"),
    [({"epochs": 12}, "epochs=12"), ({"steps": 630}, "steps=630"), ("none", "none")],
)
def test_a_budget_is_what_the_file_gives(pretrain, budget):
    assert budget_of(Experiment.model_validate({**SOURCES, "pretrain": pretrain})) == budget


@pytest.mark.parametrize(
    ("spent", "note"),
    [
        ([("none", 0), ("epochs=12", 5076)], ""),
        ([("steps=630", 630), ("none", 0), ("steps=630", 630)], "rows share their steps (630)"),
        ([("epochs=12", 5076), ("epochs=12", 2532)], "rows share their epochs (12), not their steps (2,532 to 5,076)"),
        ([("epochs=12", 2532), ("epochs=12", 2532)], "rows share their epochs (12) and their steps (2,532)"),
        ([("epochs=12", 600), ("epochs=24", 600)], "rows share their steps (600), not their epochs (12, 24)"),
        ([("epochs=12", 630), ("steps=630", 630)], "rows share their steps (630)"),
        (
            [("epochs=12", 1200), ("steps=630", 630)],
            "rows share neither epochs nor steps (epochs=12, steps=630: 630 to 1,200 steps)",
        ),
    ],
)
def test_a_sentence_says_what_rows_share(spent, note):
    assert budget_note(spent) == note
