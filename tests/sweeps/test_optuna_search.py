"""Optuna's suggestions: as many as asked for, better ones later, and nothing forgotten with the process."""

import json

import pytest

from rayreid.config import Sweep

pytest.importorskip("optuna")
from rayreid.sweeps.optuna_search import OptunaSearcher


def sweep(**changes) -> Sweep:
    parameters = {"finetune.lr": {"uniform": [0, 1]}, "backbone.stem": ["ics", "conv"]}
    return Sweep(**{"search": "optuna", "trials": 6, "parameters": parameters, **changes})


def run(searcher, count, score=lambda changes: changes["finetune.lr"], first=0):
    """Suggest and finish so many; gives the changes."""
    made = []
    for number in range(first, first + count):
        suggested = searcher.suggest(f"t{number}")
        changes = json.loads(suggested["changes"])
        assert suggested["label"] == f"finetune.lr={changes['finetune.lr']}, backbone.stem={changes['backbone.stem']}"
        searcher.on_trial_complete(f"t{number}", {"mAP": score(changes)})
        made.append(changes)
    return made


def test_it_suggests_as_many_as_asked_for(tmp_path):
    searcher = OptunaSearcher(sweep(), tmp_path)
    made = run(searcher, 6)
    assert searcher.left == 0 and searcher.suggest("more") == OptunaSearcher.FINISHED
    assert searcher.done() == made
    assert all(0 <= one["finetune.lr"] <= 1 and one["backbone.stem"] in ("ics", "conv") for one in made)


def test_it_comes_to_suggest_what_scores_well(tmp_path):
    made = run(OptunaSearcher(sweep(trials=40), tmp_path), 40)
    late = [one["finetune.lr"] for one in made[-10:]]
    assert sum(late) / 10 > 0.8


def test_a_later_command_finishes_what_was_under_way_and_repeats_nothing(tmp_path):
    first = OptunaSearcher(sweep(), tmp_path)
    made = run(first, 2)
    interrupted = json.loads(first.suggest("killed")["changes"])
    first.on_trial_complete("failed", error=True) if first.suggest("failed") else None
    again = OptunaSearcher(sweep(), tmp_path)
    assert again.left == 4
    rest = run(again, 4)
    assert interrupted in rest[:2]
    assert all(one not in made for one in rest)
    assert len(OptunaSearcher(sweep(), tmp_path).done()) == 6
    assert OptunaSearcher(sweep(), tmp_path).left == 0


def test_a_failed_trial_counts_and_is_tried_again_by_the_next_command(tmp_path):
    first = OptunaSearcher(sweep(trials=2), tmp_path)
    failed = json.loads(first.suggest("a")["changes"])
    first.on_trial_complete("a", error=True)
    run(first, 1, first=1)
    assert first.left == 0
    again = OptunaSearcher(sweep(trials=2), tmp_path)
    assert again.left == 1 and json.loads(again.suggest("b")["changes"]) == failed
