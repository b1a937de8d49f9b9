import json
from typing import get_args

import pytest
from pydantic import ValidationError

from rayreid.config import (
    Adapt,
    Backbone,
    CombinedPart,
    Evaluate,
    Experiment,
    Finetune,
    Pretrain,
    Proxy,
    Score,
    Select,
    Source,
    Sweep,
)
from rayreid.config.section import RUNTIME
from rayreid.config.selection import Measure, Ranking
from rayreid.errors import UserError
from rayreid.evaluation.metrics import METRICS
from rayreid.selection.image_measures import MEASURES
from rayreid.selection.quality_rules import BY
from rayreid.selection.registry import STRATEGIES


def test_identity_leaves_out_what_changes_only_how_a_stage_runs():
    for section, field, value in [
        (Pretrain, "checkpoint_minutes", 3),
        (Pretrain, "probe_every", 3),
        (Pretrain, "probe_images", 100),
        (Finetune, "checkpoint_minutes", 3),
        *[(section, "compile", False) for section in (Pretrain, Finetune, Adapt, Score)],
        *[(section, "checkpoint_activations", True) for section in (Pretrain, Finetune, Adapt)],
        *[(section, "deterministic", True) for section in (Pretrain, Finetune, Adapt)],
        (Pretrain, "keep_checkpoints", 5),
        (Finetune, "keep_every_epochs", 5),
        (Finetune, "evaluate_every", 5),
        (Adapt, "evaluate_every", 5),
        (Adapt, "checkpoint_minutes", 5),
        (Score, "batch_size", 17),
        (Score, "max_bad_fraction", 0.5),
        (Evaluate, "batch_size", 17),
        (Backbone, "weights", "start.pth"),
        (Backbone, "strict", False),
        (Select, "list", "best.txt"),
    ]:
        assert field not in section().identity(), section
        assert section(**{field: value}).identity() == section().identity(), section
    known = Source(dataset="folder", root="a", provenance="origins.csv", relevant="market1501")
    assert known.identity() == Source(dataset="folder", root="a").identity()


@pytest.mark.parametrize("section", [Pretrain, Finetune, Adapt, Score, Select, Evaluate, Backbone])
def test_identity_holds_everything_else(section):
    runtime = {"checkpoint_minutes", "keep_checkpoints", "keep_every_epochs", "probe_every", "probe_images"}
    runtime |= {
        "compile",
        "checkpoint_activations",
        "deterministic",
        "evaluate_every",
        "weights",
        "strict",
        "list",
        "max_bad_fraction",
    }
    runtime |= {"num_heads", "last_stride", "semantic_weight", "queue", "freeze_patch"}  # added later: see below
    runtime |= {"sampler", "margin", "rerank", "steps", "feature"}
    runtime |= {"teacher_temp_start", "teacher_temp_warmup_epochs", "label_smoothing", "layer_decay", "freeze_epochs"}
    runtime |= {"triplet_weight", "triplet_start_epoch", "triplet_normalise"}
    runtime |= {"temperature"} if section is Pretrain else set()
    runtime |= set(Ranking.model_fields) | {"parts"} if section is Select else set()
    runtime |= {"batch_size", "targets"} if section in (Score, Evaluate) else set()
    assert set(section().identity()) == set(section.model_fields) - runtime
    json.dumps(section().identity())


def test_a_field_that_was_added_later_leaves_the_ids_of_what_was_made_before():
    assert set(Backbone().identity()) == {"name", "stem", "img_size", "depth"}
    assert Backbone(num_heads=None).identity() == Backbone().identity()
    assert Evaluate(rerank=False).identity() == Evaluate().identity() == {"max_rank": 50}
    assert Evaluate(feature="before").identity() == {"max_rank": 50}
    assert Evaluate(feature="after").identity() == {"max_rank": 50, "feature": "after"}
    assert Evaluate(rerank=True).identity()["rerank"] == {"k1": 20, "k2": 6, "weight": 0.3}
    assert Backbone(num_heads=12).identity() == {**Backbone().identity(), "num_heads": 12}
    assert Backbone(last_stride=None, semantic_weight=None).identity() == Backbone().identity()
    for changed in ({"last_stride": 1}, {"semantic_weight": 0.5}):
        assert Backbone(**changed).identity() == {**Backbone().identity(), **changed}
    assert Finetune(sampler="identity", margin=None).identity() == Finetune().identity()
    for changed in ({"sampler": "camera"}, {"margin": 0.3}, {"margin": 0.0}):
        assert Finetune(**changed).identity() == {**Finetune().identity(), **changed}


def test_dino_runs_keep_the_ids_they_had_when_there_was_no_other_method():
    """The recipe of the default, as it stood in the artifacts made then."""
    assert Pretrain().identity() == {
        "method": "dino",
        "epochs": 100,
        "batch_size": 512,
        "accumulate": 1,
        "lr": "auto",
        "min_lr": 1e-06,
        "warmup_epochs": "auto",
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "teacher_momentum": 0.996,
        "teacher_temp": 0.04,
        "student_temp": 0.1,
        "centre_momentum": 0.9,
        "clip": 3.0,
        "freeze_last_layer_epochs": 1,
        "drop_path": 0.1,
        "out_dim": 65536,
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "local_crops": 8,
        "local_size": "auto",
        "global_scale": [0.4, 1.0],
        "local_scale": [0.05, 0.4],
        "precision": "auto",
    }
    assert Pretrain(out_dim=65536, clip=3).identity() == Pretrain().identity()
    assert Pretrain(out_dim=1024, local_crops=2).identity() == {
        **Pretrain().identity(),
        "out_dim": 1024,
        "local_crops": 2,
    }


def test_identity_of_another_method_holds_what_it_uses():
    plain = Pretrain(method="moby")
    assert plain.identity()["clip"] == plain.identity()["lr"] == "auto"
    assert not {"teacher_temp", "local_crops", "local_scale", "freeze_patch"} & set(plain.identity())
    assert Pretrain(method="moby", queue=64).identity() == {**plain.identity(), "queue": 64}
    assert Pretrain(method="moby", local_crops=0).identity() == plain.identity()


@pytest.mark.parametrize(
    ("method", "key", "value", "users"),
    [
        ("dino", "temperature", 0.2, "mocov3 and mocov2 and moby"),
        ("dino", "queue", 4096, "mocov2 and moby"),
        ("mocov3", "queue", 4096, "mocov2 and moby"),
        ("mocov3", "local_crops", 8, "dino"),
        ("mocov3", "clip", 3.0, "dino and moby"),
        ("moby", "freeze_patch", True, "mocov3"),
        ("mocov2", "weight_decay_end", 0.1, "dino"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(method, key, value, users):
    with pytest.raises(ValidationError, match=f"the method {method} has no use for it, only {users}; leave it out"):
        Pretrain(method=method, **{key: value})


def test_defaults_that_stand_in_a_resolved_file_are_not_refused():
    for method in ("mocov3", "mocov2", "moby", "none"):
        assert Pretrain(**Pretrain(method=method).model_dump()).method == method
    assert Pretrain(method="none", queue=5).queue == 5  # what is not run is not judged


def test_identity_follows_result_fields():
    assert Pretrain(batch_size=64).identity() != Pretrain().identity()
    assert Source(dataset="folder", root="a").identity() != Source(dataset="folder", root="b").identity()
    drawn = Source(dataset="synthetic", options={"images": 5})
    assert drawn.identity()["options"] == {"images": 5}


def test_identity_of_nested_sections_is_their_own():
    proxy = Proxy(pretrain=Pretrain(epochs=3, checkpoint_minutes=1), backbone=Backbone(weights="w.pth"))
    assert set(proxy.identity()) == {"seed", "backbone", "pretrain", "finetune"}
    assert proxy.identity()["pretrain"] == Pretrain(epochs=3).identity()
    assert proxy.identity()["backbone"] == Backbone().identity()
    assert proxy.identity()["backbone"]["img_size"] == [256, 128]


def test_auto_learning_rate_is_scaled_with_the_global_batch():
    assert Pretrain(batch_size=256).recipe(Backbone()).lr == 5e-4
    assert Pretrain(batch_size=512).recipe(Backbone()).lr == 1e-3
    assert Pretrain(batch_size=512, lr=0.3).recipe(Backbone()).lr == 0.3


def test_probes_are_ten_over_the_run_unless_said_otherwise():
    assert [Pretrain().probe_interval(n) for n in (100, 25, 10, 8, 1, 10.5, 0.3)] == [10, 3, 1, 1, 1, 2, 1]
    assert Pretrain(probe_every=7).probe_interval(100) == 7
    assert Pretrain(probe_every=7).probed
    assert not Pretrain(probe_every=0).probed


def test_steps_replace_epochs_in_the_id():
    assert "steps" not in Pretrain().identity()
    assert Pretrain().identity()["epochs"] == 100
    given = [Pretrain(steps=630, epochs=epochs).identity() for epochs in (100, 7)]
    assert given[0] == given[1]
    assert given[0]["steps"] == 630
    assert "epochs" not in given[0]


def test_the_length_in_steps_is_a_number_of_epochs():
    assert Pretrain(epochs=7).length(105) == 7
    assert Pretrain(steps=630).length(105) == 6
    assert Pretrain(steps=250).length(100) == 2.5


def test_warm_up_of_a_length_in_steps():
    warmups = [Pretrain(method="mocov3", steps=n).recipe(Backbone(stem="ics"), 100).warmup_epochs for n in (600, 75, 1)]
    assert [round(100 * epochs) for epochs in warmups] == [80, 10, 0]
    assert Pretrain(steps=250, warmup_epochs=2).recipe(Backbone(), 100).warmup_epochs == 2
    with pytest.raises(
        UserError, match=r"pretrain\.warmup_epochs=3 is 300 steps \(100 each\), more than the pretrain\.steps=250"
    ):
        Pretrain(steps=250, warmup_epochs=3).recipe(Backbone(), 100)
    Pretrain(steps=250, warmup_epochs=3).recipe(Backbone())  # as long as the pool is not known
    with pytest.raises(ValueError, match="longer than the 2 epochs"):
        Pretrain(epochs=2, warmup_epochs=3)


def test_auto_warm_up_is_the_published_share_of_the_epochs():
    assert [Pretrain(epochs=n).recipe(Backbone()).warmup_epochs for n in (100, 20, 8, 4, 1)] == [10, 2, 1, 1, 0]
    assert [Finetune(epochs=n).warmup for n in (120, 12, 2, 1)] == [20, 2, 1, 0]
    assert Pretrain(warmup_epochs=0).recipe(Backbone()).warmup_epochs == 0
    assert Finetune(warmup_epochs=7).warmup == 7
    assert Pretrain(warmup_epochs=7, epochs=7).recipe(Backbone()).warmup_epochs == 7


def test_auto_local_crops_are_half_the_size_in_whole_patches():
    assert Pretrain().crop_sizes((256, 128)) == ((256, 128), (128, 64))
    for height, width in [(384, 128), (128, 64), (64, 32), (48, 16), (16, 16), (80, 48)]:
        whole, (local_height, local_width) = Pretrain().crop_sizes((height, width))
        assert whole == (height, width)
        assert local_height % 16 == local_width % 16 == 0
        assert local_height >= 16 and local_width >= 16
        assert abs(local_height - height / 2) <= 8 and abs(local_width - width / 2) <= 8
    dinov2 = Backbone(name="vit_small_dinov2", img_size=(252, 126))
    assert Pretrain().crop_sizes(dinov2.img_size, dinov2.patch) == ((252, 126), (126, 56))
    assert Pretrain(local_size=(96, 96)).crop_sizes((256, 128)) == ((256, 128), (96, 96))


def test_a_fraction_of_one_is_the_whole_pool_unless_a_count_is_given():
    assert Select(fraction=1).whole
    assert not Select(fraction=0.99).whole
    assert not Select(fraction=1, count=10).whole


@pytest.mark.parametrize(
    ("values", "images", "expected"),
    [
        ({"fraction": 0.1}, 1000, 100),
        ({"fraction": 0.5}, 7, 4),
        ({"fraction": 0.5}, 3, 2),
        ({"fraction": 1.0}, 3, 3),
        ({"fraction": 0.1}, 3, 0),
        ({"fraction": 0.5, "count": 2}, 1000, 2),
        ({"count": 4}, 3, 4),
    ],
)
def test_the_size_is_the_count_or_else_the_rounded_fraction(values, images, expected):
    assert Select(**values).size(images) == expected


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 1 / 3, 0.5, 0.999, 1.0])
def test_a_pool_of_pool_size_gives_a_selection_that_is_large_enough(fraction):
    select = Select(fraction=fraction)
    assert all(select.size(select.pool_size(selected)) >= selected for selected in range(1, 600))
    assert Select(fraction=fraction, count=7).pool_size(1000) == 7


def test_a_count_takes_precedence_over_the_fraction():
    assert (Select(fraction=0.25).share, Select(fraction=0.25).setting) == (0.25, "select.fraction=0.25")
    assert (Select(fraction=0.25, count=8).share, Select(fraction=0.25, count=8).setting) == (None, "select.count=8")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"select": {"fraction": 1.0}}, False),
        ({"select": {"fraction": 1.0, "count": 5}}, True),
        ({"pretrain": {"method": "none"}}, False),
    ],
)
def test_an_experiment_selects_where_it_pre_trains_on_a_part_of_its_pool(changes, expected):
    sources = {"pool": {"dataset": "synthetic"}, "target": {"dataset": "synthetic"}}
    assert Experiment.model_validate({**sources, **changes}).selects is expected


def test_the_strategies_are_those_of_the_registry_with_their_options():
    single, combined = get_args(Select.model_fields["strategy"].annotation)
    assert (*get_args(single), *get_args(combined)) == tuple(STRATEGIES)
    assert get_args(CombinedPart.model_fields["strategy"].annotation) == get_args(single)
    assert get_args(Measure) == MEASURES and Select().by == BY
    for strategy in STRATEGIES.values():
        # An option is part of the identity of the strategy's own artifact, and of no other strategy's subsets.
        assert all(RUNTIME in Select.model_fields[option].metadata for option in strategy.options)


def test_rules_of_quality_may_stand_beside_the_other_keys():
    shares = {"drop_lowest": 0.05}
    select = Select.model_validate({"strategy": "quality", "min_height": 64, "rules": {"sharpness": shares}})
    assert select.rules == {"min_height": 64, "sharpness": shares} and not select.whole
    part = CombinedPart.model_validate({"strategy": "quality", "sharpness": shares})
    assert part.rules == {"sharpness": shares}
    same = {"strategy": "quality", "rules": {"min_height": 64.0, "max_height": None}}
    assert Select.model_validate(same).options(("rules",)) == {"rules": {"min_height": 64.0}}
    with pytest.raises(ValidationError, match="min_height stands in rules and beside it"):
        Select.model_validate({"strategy": "quality", "min_height": 64, "rules": {"min_height": 32}})
    for wrong in ("64", True, b"64", [64]):
        with pytest.raises(ValidationError):
            Select.model_validate({"strategy": "quality", "min_height": wrong})
    with pytest.raises(ValidationError, match="min_hight"):
        Select.model_validate({"strategy": "quality", "min_hight": 64})


def test_a_combination_has_parts_and_a_weight():
    with pytest.raises(ValidationError, match="needs parts"):
        Select(strategy="combine")
    with pytest.raises(ValidationError, match="no part of the strategy combine has a weight"):
        Select(strategy="combine", parts=[{"strategy": "cfs", "weight": 0}])
    with pytest.raises(ValidationError):
        Select(strategy="combine", parts=[{"strategy": "combine"}])
    assert not Select(strategy="combine", parts=[{"strategy": "cfs"}], fraction=1.0).whole


@pytest.mark.parametrize("levels", [0, 9, True, 1.5, "two", [], [10, 100], [10, 0], list(range(20, 0, -1))])
def test_wrong_levels_are_refused_in_words(levels):
    with pytest.raises(ValidationError, match="a number of levels from 1 to 8, or the number of"):
        Select(strategy="hierarchical", levels=levels)
    assert Select(levels=[100, 10]).levels == (100, 10) and Select(levels=8).levels == 8


def test_sections_are_immutable_and_closed():
    with pytest.raises(ValidationError):
        Pretrain().epochs = 5
    with pytest.raises(ValidationError):
        Pretrain(epoch=5)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (Select, {"fraction": 0}),
        (Select, {"fraction": float("nan")}),
        (Select, {"fraction": 1.01}),
        (Select, {"fraction": -0.5}),
        (Select, {"count": 0}),
        (Pretrain, {"epochs": 0}),
        (Pretrain, {"method": "moco"}),
        (Pretrain, {"global_scale": (0.0, 1.0)}),
        (Pretrain, {"lr": 0}),
        (Finetune, {"instances": 1}),
        (Finetune, {"optimizer": "adam"}),
        (Backbone, {"depth": 0}),
        (Backbone, {"img_size": (256,)}),
        (Backbone, {"img_size": (0, 0)}),
        (Backbone, {"img_size": (-16, 16)}),
        (Pretrain, {"local_size": (0, 0)}),
        (Pretrain, {"global_scale": (1.0, 0.4)}),
        (Pretrain, {"local_scale": (0.4, 0.05)}),
        (Pretrain, {"weight_decay": -0.01}),
        (Pretrain, {"weight_decay_end": -0.01}),
        (Pretrain, {"epochs": 4, "warmup_epochs": 5}),
        (Finetune, {"weight_decay": -0.01}),
        (Finetune, {"bias_lr_factor": -1}),
        (Finetune, {"margin": -0.1}),
        (Finetune, {"sampler": "random"}),
        (Finetune, {"evaluate_every": -1}),
        (Finetune, {"epochs": 4, "warmup_epochs": 5}),
        (Proxy, {"seed": -1}),
        (Sweep, {"parameters": {"seed": []}}),
        (Sweep, {"parameters": {}}),
        (Sweep, {"parameters": {"finetune.lr": {"uniform": [0.1, 1]}}}),
        (Sweep, {"parameters": {"seed": [0, 1]}, "trials": 2}),
        (Sweep, {"parameters": {"seed": [0, 1]}, "search": "random"}),
        (Sweep, {"parameters": {"finetune.lr": {"loguniform": [0, 1]}}, "search": "random", "trials": 2}),
        (Sweep, {"parameters": {"finetune.lr": {"uniform": [1, 0.1]}}, "search": "optuna", "trials": 2}),
        (Sweep, {"parameters": {"seed": {"choice": []}}}),
    ],
)
def test_values_out_of_range_are_refused(section, values):
    with pytest.raises(ValidationError):
        section(**values)


def test_a_choice_is_a_list_and_a_range_stays_one():
    sweep = Sweep(
        search="random",
        trials=3,
        parameters={"backbone.stem": {"choice": ["ics", "conv"]}, "finetune.lr": {"loguniform": [1e-4, 1e-2]}},
    )
    assert sweep.parameters["backbone.stem"] == ["ics", "conv"]
    assert sweep.parameters["finetune.lr"].loguniform == (1e-4, 1e-2)
    assert Sweep(**sweep.model_dump(mode="json")) == sweep


@pytest.mark.parametrize("seed", [-1, 2**31, 0.5])
def test_a_seed_is_a_whole_number_of_31_bits(seed):
    source = Source(dataset="synthetic")
    assert Experiment(pool=source, target=source, seed=2**31 - 1).seed == 2**31 - 1
    with pytest.raises(ValidationError):
        Experiment(pool=source, target=source, seed=seed)


def test_an_experiment_needs_a_pool_and_a_target():
    source = Source(dataset="synthetic")
    assert Experiment(pool=source, target=source).seed == 0
    with pytest.raises(ValidationError):
        Experiment(pool=source)


@pytest.mark.parametrize(("epochs", "falls"), [(50, 20), (8, 4), (1, 1), (0, 1)])
def test_the_rate_of_an_adaptation_falls_after_two_fifths(epochs, falls):
    assert Adapt(epochs=epochs).decay_epochs == falls
    assert Adapt(epochs=epochs, decay_every=3).decay_epochs == 3


@pytest.mark.parametrize(
    "wrong",
    [{"eps": 0}, {"eps": 1}, {"k1": 1}, {"k2": 0}, {"k1": 5}, {"clusters": 1}, {"instances": 1}, {"epochs": -1}],
)
def test_numbers_of_an_adaptation_out_of_range(wrong):
    with pytest.raises(ValidationError):
        Adapt(**wrong)


def test_a_sweep_can_search_for_every_metric_and_no_other():
    assert get_args(Sweep.model_fields["metric"].annotation) == METRICS
