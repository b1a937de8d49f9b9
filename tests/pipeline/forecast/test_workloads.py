import pytest

from rayreid.config.loading import change
from rayreid.config.loading import load_experiment as load
from rayreid.pipeline.forecast.images import ImageCounts
from rayreid.pipeline.forecast.workloads import UnknownSizeError, Workloads, cost_of, head_parameters
from rayreid.pipeline.graph import plan
from rayreid.stages import quality
from tiny_experiment import TINY


@pytest.fixture
def work(tiny, tmp_path):
    """`work(role, key=value…)` returns the work of an artifact of the tiny experiment."""
    experiment = load(tiny())

    def work(role, **changes):
        changed = change(experiment, {key.replace("__", "."): value for key, value in changes.items()})
        return Workloads(ImageCounts()).of(plan(changed, tmp_path)[role])

    return work


def test_a_pre_training_counts_images_steps_and_all_crops(work):
    found = work("weights")
    assert (found.images, found.steps, found.seen) == (60, 1, 32)
    large, small = cost_of(found.network).gflop, cost_of(found.network, (32, 16)).gflop
    assert found.gflop / 32 > 3 * (2 * large + small) + 2 * large


def test_steps_count_where_they_are_given(work):
    assert work("weights", pretrain__steps=7).seen == 7 * 32


def test_methods_differ_in_their_passes(work):
    moco = {"pretrain__method": "mocov3", "pretrain__batch_size": 32}
    found = work("weights", pretrain={"method": "mocov3", "batch_size": 32, "epochs": 1})
    assert found.gflop == pytest.approx(8 * found.seen * cost_of(found.network).gflop), moco


def test_a_fine_tuning_has_the_steps_of_its_plan(work):
    found = work("model", finetune__epochs=3)
    assert (found.images, found.steps) == (60, 3 * 2) and found.seen == 6 * 16  # 10 persons, 4 a batch


def test_inference_passes_every_image_once(work):
    scores, metrics = work("scores"), work("metrics")
    assert scores.seen == 120 and scores.gflop == pytest.approx(2 * 120 * cost_of(scores.network).gflop)
    assert metrics.images == metrics.seen > 0 and work("subset").images == 60 and work("pool").images == 120


def test_an_adaptation_extracts_its_images_before_every_epoch(work):
    found = work("adapted", adapt={"method": "usl", "epochs": 2, "iterations": 5, "clusters": 4, "instances": 4})
    assert found.steps == 10 and found.gflop == pytest.approx((3 * 160 + 2 * 60) * cost_of(found.network).gflop)


def test_a_strategy_by_features_has_features_and_priorities(work):
    assert work("features", select__strategy="cluster").images == work("priority", select__strategy="cluster").images


def test_the_similarities_to_all_target_images_are_work(work):
    found = work("priority", select__strategy="target_similarity")
    assert found.gflop == pytest.approx(2 * 384 * 120 * 60 / 1e9) and found.images == 120
    assert work("priority", select__strategy="dedup").gflop == 0


def test_all_images_without_labels_are_compared_with(work):
    pool = {"name": "cameras", **TINY["pool"]}
    found = work("target_features.cameras", select__strategy="target_similarity", score__targets=[pool])
    assert found.images == 120


def test_a_combination_has_the_parts_and_their_priorities(work):
    combined = {"select": {"strategy": "combine", "parts": [{"strategy": "cfs"}, {"strategy": "cluster"}]}}
    assert work("subset", **combined).images == 60
    assert {work(role, **combined).images for role in ("part.1_cfs", "part.2_cluster", "priority", "features")} == {120}


def test_the_quality_of_every_image_is_measured_without_a_network(tiny, tmp_path):
    pool = plan(load(tiny()), tmp_path)["pool"]
    found = Workloads(ImageCounts()).of(quality.plan(pool))
    assert (found.images, found.gflop, found.network) == (120, 0, None)


def test_what_depends_on_a_missing_dataset_is_not_known(work):
    nowhere = {"pool": {"dataset": "folder", "root": "nowhere"}}
    for role in ("pool", "subset", "weights", "scores"):
        with pytest.raises(UnknownSizeError, match="the size of dataset folder nowhere"):
            work(role, **nowhere)
    assert work("model", **nowhere).images == 60


def test_a_published_size_is_named(work):
    assert work("weights", pool={"dataset": "folder", "root": "luperson"}).assumed == ("luperson",)


def test_the_head_of_dino_has_its_published_size(tiny):
    experiment = change(load(tiny()), {"pretrain": {"out_dim": "auto", "hidden_dim": "auto", "bottleneck_dim": 256}})
    assert head_parameters(experiment.pretrain, experiment.backbone) == 384 * 2048 + 2048**2 + 2048 * 256 + 256 * 65536
