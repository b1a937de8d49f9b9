import json

import pytest

from rayreid.config.loading import change, load_experiment
from rayreid.errors import UserError
from rayreid.pipeline.forecast.earlier_runs import EarlierRuns
from rayreid.pipeline.forecast.estimates import Estimator
from rayreid.pipeline.forecast.images import ImageCounts
from rayreid.pipeline.forecast.planned_machine import PlannedMachine, machine_here
from rayreid.pipeline.forecast.workloads import Workload, Workloads
from rayreid.pipeline.graph import plan
from rayreid.stages import quality
from rayreid.storage.inventory import Inventory, size_of

CPU, GPUS = PlannedMachine(2, 0, "this one"), PlannedMachine(64, 4)


@pytest.fixture
def experiment(tiny):
    return load_experiment(tiny())


@pytest.fixture
def estimate(experiment, tmp_path):
    def estimate(role, machine=CPU, **changes):
        one = change(experiment, changes)
        artifact = plan(one, tmp_path)[role]
        estimator = Estimator(machine, EarlierRuns(Inventory(tmp_path), machine))
        return estimator.of(role, artifact, Workloads(ImageCounts()).of(artifact), one)

    return estimate


@pytest.fixture
def trained(experiment, tmp_path):
    """A complete fine-tuning that saw 96 images at 100 a second, with 10 s beside them."""

    def trained(**facts):
        artifact = plan(change(experiment, {"finetune.epochs": 3, "seed": 5}), tmp_path)["model"]
        rows = [
            {"step": step, "loss": 1.0, "time": 0.0, "images_per_second": pace}
            for step, pace in enumerate((50, 100, 110))
        ]
        with artifact.writing() as folder:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "model.safetensors").write_bytes(bytes(1000))
            known = {
                "steps": 6,
                "images_seen": 96,
                "seconds": 10.96,
                "device": "cpu",
                "machine": "this one",
                "workers": 1,
            }
            artifact.finish({**known, "images": 60, **facts})
        return artifact

    return trained


def test_without_an_earlier_run_the_table_tells(estimate):
    found = estimate("model")
    assert (found.basis, found.runs) == ("table", 0)
    assert found.seconds.low < found.seconds.likely < found.seconds.high and found.gpu_hours.high == 0


def test_an_earlier_run_tells_its_pace_and_its_start(estimate, trained):
    made = trained()
    found = estimate("model", finetune={"epochs": 30})
    assert (found.basis, found.runs) == ("earlier runs", 1)
    assert found.seconds.likely == pytest.approx(10 + 30 * 2 * 16 / 100)
    assert found.seconds.low < 19 < found.seconds.high
    assert found.disk.likely == 2 * size_of(made.path), "MLflow keeps a copy"


@pytest.mark.parametrize(
    "facts",
    [{"device": "cuda"}, {"machine": "another"}, {"resumed": True}, {"seconds": None}],
    ids=["another device", "another machine", "interrupted", "no time"],
)
def test_a_run_that_says_nothing_of_this_machine_is_left_out(estimate, trained, facts):
    trained(**facts)
    assert estimate("model").basis == "table"


def test_a_run_of_another_network_is_left_out(estimate, trained):
    trained()
    assert estimate("model", backbone={"name": "vit_small"}).basis == "table"


def test_more_gpus_take_less_time_and_about_as_many_gpu_hours(estimate):
    luperson = {"pool": {"dataset": "folder", "root": "luperson"}, "pretrain": {"epochs": 100, "batch_size": 512}}
    network = {"backbone": {"name": "vit_small", "depth": None, "img_size": [256, 128]}}
    auto = dict.fromkeys(("out_dim", "hidden_dim", "local_crops"), "auto") | {"bottleneck_dim": 256}
    changes = {**luperson, **network, "select": {"strategy": "random", "fraction": 1.0}}
    changes["pretrain"] |= auto
    one = estimate("weights", PlannedMachine(16, 1), **changes)
    four = estimate("weights", GPUS, **changes)
    assert 3.5 < one.seconds.likely / four.seconds.likely < 4.1
    assert one.gpu_hours.low == pytest.approx(38.7, rel=0.02), "docs/performance.md: crops given, a lower bound"
    assert one.gpu_hours.likely == pytest.approx(45.5, rel=0.02), "docs/performance.md: from decoded images"
    assert four.gpu_hours.likely == pytest.approx(one.gpu_hours.likely, rel=0.1)


def test_measures_of_quality_take_a_core_per_image_and_some_bytes(experiment, tmp_path):
    luperson = change(experiment, {"pool": {"dataset": "folder", "root": "luperson"}})
    measured = quality.plan(plan(luperson, tmp_path)["pool"])
    found = [
        Estimator(machine, EarlierRuns(Inventory(tmp_path), machine)).of(
            "quality", measured, Workloads(ImageCounts()).of(measured), luperson
        )
        for machine in (CPU, PlannedMachine(64, 0))
    ]
    assert found[0].seconds.low < 4_180_243 / 2 / 1_500 < found[0].seconds.high
    assert 25 < found[0].seconds.likely / found[1].seconds.likely <= 32
    assert 1e8 < found[0].disk.likely < 1e9 and found[0].gpu_hours.high == 0


@pytest.mark.parametrize(("strategy", "power"), [("dedup", 1.5), ("hierarchical", 5 / 3)])
def test_groups_of_a_large_pool_take_longer_than_in_proportion(experiment, tmp_path, strategy, power):
    one = change(experiment, {"select.strategy": strategy})
    artifact = plan(one, tmp_path)["priority"]
    estimator = Estimator(CPU, EarlierRuns(Inventory(tmp_path), CPU))
    none, million, four = (
        estimator.of("priority", artifact, Workload(images), one).seconds.likely for images in (0, 10**6, 4 * 10**6)
    )
    assert four - none == pytest.approx(4**power * (million - none))


def test_a_ranking_of_a_much_smaller_pool_or_by_another_strategy_tells_nothing(experiment, tmp_path):
    dedup, hierarchical = (change(experiment, {"select.strategy": name}) for name in ("dedup", "hierarchical"))
    made, other = (plan(one, tmp_path)["priority"] for one in (dedup, hierarchical))
    with made.writing():
        made.finish({"images": 10**6, "seconds": 30.0, "machine": "this one"})
    estimator = Estimator(CPU, EarlierRuns(Inventory(tmp_path), CPU))
    assert estimator.of("priority", made, Workload(2 * 10**6), dedup).basis == "earlier runs"
    assert estimator.of("priority", made, Workload(4 * 10**6), dedup).basis == "table"
    assert estimator.of("priority", other, Workload(10**6), hierarchical).basis == "table"


def test_small_steps_do_not_become_faster_without_end(estimate):
    few = estimate("model", PlannedMachine(1024, 64), finetune={"epochs": 120, "identities": 64}, target=TARGET)
    assert few.seconds.low > 0.01 * 120


TARGET = {
    "dataset": "synthetic",
    "options": {"part": "target", "size": [64, 32], "identities": 64, "test_identities": 6, "cameras": 3},
}


def test_checkpoints_that_are_kept_take_room(estimate):
    short, long = (estimate("weights", pretrain={"epochs": epochs}).disk for epochs in (19, 100))
    assert long.likely > 3 * short.likely


def test_what_is_left_of_a_half_made_one_starts_up_again(estimate):
    whole = estimate("model")
    half = whole.of_the_rest(0.5, "finetune")
    assert whole.seconds.likely / 2 < half.seconds.likely < whole.seconds.likely


def test_a_machine_that_is_too_small_is_refused(estimate):
    with pytest.raises(UserError, match=r"resources.workers is 8, but the cluster has 2 CPUs"):
        estimate("model", resources={"workers": 8})


def test_the_machine_is_this_one_unless_another_is_named():
    here = machine_here()
    assert here.cpus >= 1 and here.name
    there = machine_here(gpus=here.gpus + 8)
    assert there.name == "" and there.cpus == 16 * (here.gpus + 8) and str(there).startswith(str(here.gpus + 8))
    assert machine_here(0, 3).nodes == [{"CPU": 3.0}]
    for wrong in ({"gpus": -1}, {"cpus": 0}):
        with pytest.raises(UserError, match="give"):
            machine_here(**wrong)


def test_a_machine_has_the_cores_that_ray_is_started_with(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert machine_here(gpus=0).cpus == 1
