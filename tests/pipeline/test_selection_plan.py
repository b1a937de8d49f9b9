"""What the graph of a subset holds, and what is refused before it is made; nothing runs."""

import pytest

from rayreid.config.loading import change, load_experiment
from rayreid.errors import UserError
from rayreid.pipeline.graph import plan
from rayreid.pipeline.preflight import check


@pytest.fixture
def experiment(tiny):
    return load_experiment(tiny())


def graph_of(experiment, tmp_path, **select):
    return plan(change(experiment, {f"select.{key}": value for key, value in select.items()}), tmp_path)


def test_patch_tokens_are_other_features(experiment, tmp_path):
    of_class, of_patches = (
        graph_of(experiment, tmp_path, strategy="target_similarity", token=token) for token in ("class", "patch")
    )
    assert of_class["features"].id != of_patches["patch_features"].id
    assert "patch_features" not in of_class and "features" not in of_patches
    assert of_patches["priority"].inputs["features"].id == of_patches["patch_features"].id
    assert of_patches["priority"].inputs["target_features"].id == of_patches["target_patch_features"].id


def test_parts_share_their_features_and_may_differ_in_the_token(experiment, tmp_path):
    parts = [
        {"strategy": "target_similarity"},
        {"strategy": "cluster"},
        {"strategy": "target_similarity", "token": "patch"},
        {"strategy": "quality", "min_height": 8},
    ]
    graph = graph_of(experiment, tmp_path, strategy="combine", parts=parts)
    assert {"features", "patch_features", "quality", "part.4_quality"} < set(graph)
    priority = graph["priority"]
    assert priority.inputs["part.1_target_similarity"].inputs["features"].id == priority.inputs["features"].id
    assert priority.inputs["part.3_target_similarity"].inputs["features"].id == graph["patch_features"].id


def test_the_options_of_a_strategy_name_its_own_priorities_only(experiment, tmp_path):
    plain = graph_of(experiment, tmp_path, strategy="target_similarity")["priority"].id
    assert graph_of(experiment, tmp_path, strategy="target_similarity", keep=9, levels=3)["priority"].id == plain
    others = [{"mode": "round_robin"}, {"centre": True}, {"token": "patch"}]
    ids = [graph_of(experiment, tmp_path, strategy="target_similarity", **options)["priority"].id for options in others]
    assert len({plain, *ids}) == 4
    assert graph_of(experiment, tmp_path, strategy="target_similarity", centre=False)["priority"].id == plain
    near, centred = (graph_of(experiment, tmp_path, strategy="dedup", centre=centre) for centre in ("auto", True))
    assert near["priority"].id == centred["priority"].id


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"strategy": "quality", "rules": {"min_hight": 64}},
            "unknown rule 'min_hight'; did you mean",
        ),
        (
            {"strategy": "quality", "rules": {"sharpness": {"drop_lowest": 1.5}}},
            "select.sharpness.drop_lowest is 1.5",
        ),
        (
            {"strategy": "combine", "parts": [{"strategy": "quality", "rules": {"max_border": 7}}]},
            "select.parts.0.max_border is 7.0; border lies between",
        ),
    ],
)
def test_rules_are_checked_before_anything_runs(experiment, tmp_path, changes, told):
    changed = change(experiment, {f"select.{key}": value for key, value in changes.items()})
    with pytest.raises(UserError, match=told):
        check([changed], {"tiny": plan(changed, tmp_path)})


def test_patch_tokens_of_a_network_without_any_are_refused(experiment, tmp_path):
    changed = change(
        experiment,
        {"select.strategy": "cluster", "select.token": "patch", "proxy.backbone": {"name": "resnet50", "depth": None}},
    )
    with pytest.raises(UserError, match=r"^select.token: patch is for vit_\* only, not proxy.backbone.name=resnet50$"):
        check([changed], {"tiny": plan(changed, tmp_path)})


@pytest.mark.parametrize("parts", [[{"strategy": "dedup"}], [{"strategy": "random"}, {"strategy": "cluster"}]])
def test_a_combination_with_features_needs_faiss_from_the_start(experiment, tmp_path, monkeypatch, parts):
    def missing() -> None:
        raise UserError("faiss is missing")

    monkeypatch.setattr("rayreid.pipeline.preflight.require_faiss", missing)
    changed = change(experiment, {"select.strategy": "combine", "select.parts": parts})
    with pytest.raises(UserError, match="faiss is missing"):
        check([changed], {"tiny": plan(changed, tmp_path)})
    alone = change(experiment, {"select.strategy": "dedup"})
    check([alone], {"tiny": plan(alone, tmp_path)})
