"""Which experiments a sweep is made of."""

import pytest

from rayreid.config.loading import load_experiment
from rayreid.errors import UserError
from rayreid.sweeps.trials import corners, rounded, trials

SPACE = {"finetune.lr": {"loguniform": [1e-4, 1e-1]}, "finetune.erasing": {"uniform": [0, 1]}, "seed": [0, 1]}


def drawn(tiny, **sweep):
    return trials(load_experiment(tiny(sweep={"search": "random", "parameters": SPACE, **sweep})))


def test_a_grid_is_all_combinations(tiny):
    parameters = {"select.fraction": [0.25, 1.0], "backbone.stem": ["patchify", "ics"]}
    made = trials(load_experiment(tiny(sweep={"parameters": parameters})))
    assert {(e.select.fraction, e.backbone.stem) for e in made.values()} == {
        (fraction, stem) for fraction in (0.25, 1.0) for stem in ("patchify", "ics")
    }
    assert {e.proxy.backbone.stem for e in made.values()} == {"patchify"}


def test_without_parameters_there_is_nothing_to_sweep(tiny):
    with pytest.raises(UserError, match=r"sweep\.parameters"):
        trials(load_experiment(tiny()))


def test_drawn_trials_are_the_same_every_time_and_others_for_another_seed(tiny):
    first = drawn(tiny, trials=8)
    assert len(first) == 8 and first == drawn(tiny, trials=8)
    assert first.keys() == {*drawn(tiny, trials=5)} | (first.keys() - drawn(tiny, trials=5).keys())
    assert not first.keys() & drawn(tiny, trials=8, seed=1).keys()


def test_drawn_values_lie_within_their_ranges(tiny):
    made = drawn(tiny, trials=60).values()
    rates = [e.finetune.lr for e in made]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-1
    assert 15 < sum(rate < 10**-2.5 for rate in rates) < 45  # half of them, on a logarithmic scale
    assert {e.seed for e in made} == {0, 1}
    assert all(0 <= e.finetune.erasing <= 1 for e in made)


def test_a_space_of_fewer_combinations_gives_those(tiny):
    assert len(drawn(tiny, trials=9, parameters={"seed": [0, 1, 2]})) == 3


def test_a_search_is_checked_at_every_value_and_bound(tiny):
    experiment = load_experiment(tiny(sweep={"search": "optuna", "trials": 4, "parameters": SPACE}))
    assert trials(experiment) == {}
    ends = corners(experiment)
    rates = {e.finetune.lr for e in ends}
    assert (min(rates), max(rates)) == (1e-4, 1e-1) and {e.seed for e in ends} == {0, 1}
    bad = {"backbone.stem": ["ics", "no stem"], "finetune.lr": {"uniform": [-1, 1]}}
    with pytest.raises(UserError, match=r"sweep\.parameters.*finetune\.lr"):
        corners(load_experiment(tiny(sweep={"search": "optuna", "trials": 4, "parameters": bad})))


def test_a_range_of_a_key_of_whole_numbers_is_refused(tiny):
    space = {"finetune.epochs": {"uniform": [1, 5]}}
    with pytest.raises(UserError, match=r"sweep\.parameters.*finetune\.epochs"):
        corners(load_experiment(tiny(sweep={"search": "optuna", "trials": 4, "parameters": space})))


@pytest.mark.parametrize(
    ("value", "expected"), [(0.123456, 0.1235), (1.23456e-5, 1.235e-5), (12345.6, 12350.0), (0, 0)]
)
def test_numbers_are_drawn_with_four_digits(value, expected):
    assert rounded(value) == pytest.approx(expected, rel=1e-12)
