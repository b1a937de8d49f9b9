import math

import pytest
from outcomes_of import outcome

from rayreid.evaluation.outcomes import NOTHING, WHOLE, curves, grouped, names_of, pareto


def test_seeds_of_one_setting_are_brought_together():
    groups = grouped([outcome(seed=0, mAP=0.4), outcome("random", seed=0, mAP=0.1), outcome(seed=1, mAP=0.6)])
    assert [group.first.strategy for group in groups] == ["cfs", "random"]
    assert groups[0].mean("mAP") == pytest.approx(0.5) and groups[0].std("mAP") == pytest.approx(0.2 / math.sqrt(2))
    assert groups[0].mean("images") == 500 and groups[0].mean("gpu_hours") == 2
    assert math.isnan(groups[1].std("mAP"))


@pytest.mark.parametrize(
    "change",
    [
        {"stem": "ics"},
        {"backbone": "vit_small"},
        {"method": "moby"},
        {"adapt": "usl"},
        {"fraction": 0.25},
        {"extras": {"finetune.lr": "0.1"}},
    ],
)
def test_whatever_else_differs_parts_them(change):
    assert len(grouped([outcome(), outcome(seed=1, **change)])) == 2


def test_two_trials_that_are_one_measurement_count_once():
    # cfs and random at a fraction of 1 are one pre-training of the whole pool.
    whole = {"strategy": "none", "fraction": 1.0, "mAP": 0.5}
    (group,) = grouped(
        [
            outcome(**whole, result="evaluate/a"),
            outcome(**whole, result="evaluate/a"),
            outcome(**whole, result="evaluate/b"),
        ]
    )
    assert len(group.members) == 2


def test_numbers_of_images_part_groups_where_no_fraction_is_given():
    groups = grouped([outcome(fraction=None, images=100), outcome(fraction=None, images=200)])
    assert names_of(groups) == ["cfs 100 images", "cfs 200 images"]


def test_names_say_what_differs():
    groups = grouped(
        [
            outcome(),
            outcome("none", 1.0),
            outcome("none", 0.0, method="none"),
            outcome(stem="ics", extras={"finetune.lr": "0.1"}),
        ]
    )
    assert names_of(groups) == [
        "patchify, dino, cfs 50 %",
        f"patchify, dino, {WHOLE}",
        f"patchify, {NOTHING}",
        "ics, dino, cfs 50 %, finetune.lr=0.1",
    ]
    assert names_of(groups[:2]) == ["cfs 50 %", WHOLE]


def test_the_front_holds_what_nothing_cheaper_reaches():
    costs, values = [3, 1, 2, 2, 4, 1], [0.5, 0.2, 0.6, 0.1, 0.7, 0.2]
    assert pareto(costs, values) == [1, 2, 4]
    assert pareto([1], [0.0]) == [0] and pareto([], []) == []


def test_every_strategy_s_curve_ends_in_the_whole_pool():
    groups = grouped(
        [
            outcome("none", 1.0, mAP=0.7),
            outcome("cfs", 0.5),
            outcome("random", 0.5),
            outcome("cfs", 0.25),
            outcome("cfs", 0.5, stem="ics"),
            outcome("none", 0.0, method="none"),
            outcome("cfs", None, images=10),
        ]
    )
    lines = {line.name: line for line in curves(groups)}
    assert {name: line.fractions for name, line in lines.items()} == {
        "patchify, cfs": [0.25, 0.5, 1.0],
        "patchify, random": [0.5, 1.0],
        "ics, cfs": [0.5],  # its whole pool was not run: another stem's is not its end
    }
    assert lines["patchify, random"].at(1.0).mean("mAP") == 0.7 and lines["ics, cfs"].at(1.0) is None
