"""The benchmarks of a GPU: `gpu.py`, `gpu_ray.py` and `gpu_evidence.py`, at toy size on a CPU."""

import argparse
import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rayreid.config.loading import load_experiment
from rayreid.pipeline.graph import plan
from rayreid.pipeline.preflight import check as check_before_run
from rayreid.training import loop
from rayreid.training.compilation import compiled

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TOY = argparse.Namespace(device="cpu", toy=True, profile=None, seconds=600.0)


@pytest.fixture(scope="module")
def script():
    """`script(name)` imports a module of `benchmarks/`, whose modules find one another as they do when one is run."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(script, tmp_path, monkeypatch, capsys):
    """`run(rows, *arguments)` runs `gpu.py` on these rows; returns its exit status and the lines that it wrote."""
    gpu = script("gpu")

    def run(rows=None, *arguments):
        out = tmp_path / "gpu.jsonl"
        if rows is not None:
            monkeypatch.setattr(gpu, "ROWS", rows)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(out), *arguments])
        before = torch.get_float32_matmul_precision()
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        torch.set_float32_matmul_precision(before)
        return ended.value.code, [json.loads(line) for line in out.read_text().splitlines()]

    return run


def row(**parts):
    """A row whose parts return these values, or raise them."""

    def one(values):
        if isinstance(values, Exception):
            raise values
        return values

    def parts_of(args):
        yield from ((name, partial(one, values)) for name, values in parts.items())

    return parts_of


GOOD = row(rate={"images_s": 2.0}, like_the_cpu={"same": "yes"})


def test_rows_that_agree_with_the_cpu_end_well(run):
    status, lines = run({"one": GOOD, "two": GOOD})
    assert status == 0
    assert [(line["row"], line["part"]) for line in lines] == [
        (name, part) for name in ("one", "two") for part in ("rate", "like_the_cpu")
    ]
    assert lines[0]["images_s"] == 2.0 and lines[0]["torch"] == torch.__version__


@pytest.mark.parametrize("answer", ["NO", "NO: 1.0 and 2.0", "not compared"])
def test_results_that_differ_from_the_cpu_s_are_a_failure(run, answer):
    status, lines = run({"one": row(rate={"images_s": 2.0}, like_the_cpu={"same": answer}), "two": GOOD})
    assert status == 1 and len(lines) == 4


def test_a_part_that_fails_costs_only_itself(run):
    parts = {"rate": {"images_s": 2.0}, "device": RuntimeError("no profiler"), "like_the_cpu": {"same": "yes"}}
    status, lines = run({"one": row(**parts), "two": GOOD})
    assert status == 1 and len(lines) == 5
    assert lines[0]["images_s"] == 2.0
    assert lines[1]["part"] == "device" and lines[1]["error"] == "RuntimeError: no profiler"
    assert lines[2]["same"] == "yes"


def test_the_rate_is_on_disk_before_the_next_part_begins(run, tmp_path):
    def parts(args):
        yield "rate", lambda: {"images_s": 2.0}
        yield "device", lambda: {"written": (tmp_path / "gpu.jsonl").read_text().count("images_s")}

    _, lines = run({"one": parts})
    assert lines[1]["written"] == 1


def test_a_row_ends_where_its_first_part_or_its_preparation_fails(run):
    def unprepared(args):
        raise ValueError("no room")
        yield

    first = row(rate=RuntimeError("does not compile"), like_the_cpu={"same": "yes"})
    status, lines = run({"one": first, "two": unprepared, "three": GOOD})
    assert status == 1
    assert [(line["row"], line["part"]) for line in lines] == [
        ("one", "rate"),
        ("two", "preparation"),
        ("three", "rate"),
        ("three", "like_the_cpu"),
    ]
    assert lines[1]["error"] == "ValueError: no room"


def test_what_would_begin_too_late_is_named(run):
    status, lines = run({"one": GOOD, "two": GOOD}, "--seconds", "-1")
    assert status == 0
    assert [(line["row"], line["left_out"]) for line in lines] == [(name, "-1.0 s are over") for name in ("one", "two")]


def test_the_idle_share_is_that_of_the_middle(script):
    idle_share = script("gpu_rows.clock").idle_share
    assert idle_share([(0, 10), (12, 18), (14, 20), (30, 40)]) == pytest.approx(1 - 8 / 20)
    assert idle_share([(0, 1), (10, 30), (39, 40)]) == pytest.approx(0)
    assert idle_share([(0, 40), (15, 16)]) == pytest.approx(0)


def test_a_profile_ends_with_its_context(script):
    clock = script("gpu_rows.clock")
    with pytest.raises(ValueError, match="no step"), clock.Trace("cpu") as trace:
        trace.start()
        raise ValueError("no step")
    assert clock.kernels(lambda: torch.ones(2) + 1, "cpu", None) == {"idle": "not measured"}


@pytest.mark.parametrize(("stem", "gflop"), [("patchify", 82.9), ("ics", 106.5)])
def test_nominal_operations_are_those_of_the_documents(script, stem, gflop):
    case = script("gpu_rows.steps").Case("vit_small", stem)
    assert case.operations(case.build("cpu")) / 1e9 == pytest.approx(gflop, abs=0.05)


@pytest.mark.parametrize("stem", ["patchify", "ics"])
def test_the_formula_of_a_forward_pass_counts_what_the_plain_one_executes(script, stem):
    flops, steps = script("gpu_rows.flops"), script("gpu_rows.steps")
    method = steps.case(TOY, "vit_small", stem).build("cpu")
    plain = script("dino_plain").PlainNetwork(method.student)
    for size in ((64, 32), (32, 16)):
        counted = flops.executed(lambda size=size: plain.backbone.forward_features(torch.randn(3, 3, *size)))
        assert counted == 3 * flops.of_forward(method.student.backbone, size)


def test_executed_operations_of_a_step_grow_with_its_images_and_with_activations_computed_again(script):
    steps = script("gpu_rows.steps")
    one = steps.case(TOY, "vit_small", "patchify")
    method = one.build("cpu")
    # In bfloat16, since the counter does not know the CPU's kernel of attention in float32.
    count = steps.executed(one, method, "cpu", "bf16")
    assert 0.75 < count / one.operations(method) < 1
    assert all(parameter.grad is None for parameter in method.parameters())
    again = steps.executed(one, one.build("cpu", checkpointed=True), "cpu", "bf16")
    assert 1.05 < again / count < 4 / 3


def test_results_unlike_the_cpu_s_are_found(script, monkeypatch):
    steps = script("gpu_rows.steps")
    one = steps.case(TOY, "vit_small", "patchify")
    monkeypatch.setattr(steps, "GRADIENT_ERROR", 0.0)
    monkeypatch.setattr(steps, "precision", lambda args: "bf16")
    found = steps.whole_like_the_cpu(TOY, one, False, False)
    assert found["same"] == "NO" and 0 < found["gradient_error"] < 0.05 and found["loss_error"] < steps.LOSS_ERROR


SHORT = ["step_patchify_eager", "step_patchify_plain", "score_jpegs", "evaluate", "augment", "extract"]


def check(status, lines):
    assert status == 0, [line for line in lines if "error" in line or line.get("same", "yes") != "yes"]
    assert not any("left_out" in line for line in lines)
    return {(line["row"], line["part"]): line for line in lines}


def test_rows_run_on_a_cpu(run):
    found = check(*run(None, "--rows", *SHORT))
    for name in ("step_patchify_eager", "step_patchify_plain"):
        rate, work = found[name, "rate"], found[name, "executed"]
        assert rate["images_s"] > 0 and 0 < work["executed_TFLOPs"] < rate["nominal_TFLOPs"]
        assert rate["nominal_share"] > 0 and (name, "device") in found
    for name in SHORT:
        assert any(line.get("same") == "yes" for (of, _), line in found.items() if of == name), name


@pytest.mark.slow
def test_all_rows_run_on_a_cpu(run, script, monkeypatch, tmp_path):
    """With a backend that generates no code: Inductor takes minutes for what is compiled here."""
    for module in (loop, script("gpu_rows.steps")):
        monkeypatch.setattr(module, "compiled", lambda enabled=True: compiled(enabled, "aot_eager"))
    found = check(*run(None, "--all", "--profile", str(tmp_path / "tables")))
    assert {name for name, _ in found} == {*script("gpu").ROWS, *script("gpu").MORE}


@pytest.mark.parametrize("toy", [False, True])
def test_the_experiment_of_gpu_ray_passes_the_checks_before_a_run(script, tmp_path, monkeypatch, toy):
    network = {"backbone": "vit_small", "stem": "patchify", "input": (256, 128)}
    args = argparse.Namespace(images=512, steps=6, toy=toy, **network)
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path))
    script("store_access").make_store(tmp_path / "store", args.images, script("pictures").random_jpegs(4, 32, 16))
    file = tmp_path / "experiment.yaml"
    file.write_text(json.dumps(script("gpu_ray").experiment_of(args)))
    experiment = load_experiment(file).alone
    check_before_run([experiment], {experiment.name: plan(experiment, tmp_path)})
    assert experiment.resources.gpu is not toy
    assert experiment.pretrain.epochs == (1 if toy else 3), "about 6 steps, of 2 in an epoch at full size"


def test_a_pre_training_that_fails_leaves_the_scoring(script, tmp_path):
    def fail(error):
        def part(root, args):
            raise error

        return part

    rows_of = script("gpu_ray").rows_of
    for error in (ValueError("no Ray"), SystemExit("pipeline: its process ended with status 1")):
        lines = list(rows_of({"pretrain": fail(error), "score": lambda root, args: {"images_s": 1.0}}, tmp_path, TOY))
        assert [line["row"] for line in lines] == ["ray_pretrain", "ray_score"]
        assert str(error) in lines[0]["error"] and lines[1]["images_s"] == 1.0


@pytest.mark.parametrize("toy", [False, True])
def test_the_experiment_of_gpu_evidence_can_be_loaded(script, toy):
    experiment = script("gpu_evidence").experiment_of(3, toy)
    assert experiment.seed == 3 and experiment.resources.gpu is not toy and len(experiment.compare) > 1
