"""A finished sweep in MLflow, put down as the stages would, without any training."""

from rayreid.pipeline.tags import COLUMNS
from rayreid.tracking.run import Run
from rayreid.tracking.tracker import Tracker

SCORES = {"cfs": {0.25: 0.30, 0.5: 0.42}, "random": {0.25: 0.22, 0.5: 0.31}}
WHOLE, NOTHING = 0.40, 0.11


def put_down(root, name="swept", stems=("patchify",), seeds=(0, 1), target="synthetic") -> Run:
    """Trials of two strategies at two fractions, the whole pool twice, no pre-training, and one that failed."""
    tracker = Tracker(root, name)
    top = tracker.run(name, {"experiment": name, "config": "abc", "level": "sweep"})
    scores = _stage(top, "score", {"gpu_hours": 0.5, "seconds": 1800})
    evaluated = _stage(top, "evaluate", {"queries": 150, "skipped_queries": 10, "gallery": 300})
    common = {"top": top, "name": name, "target": target, "evaluated": evaluated}
    for number, stem in enumerate(stems):
        for seed in seeds:
            gain = 0.05 * number + 0.01 * seed
            for strategy, by_fraction in SCORES.items():
                for fraction, value in by_fraction.items():
                    _trial(strategy, fraction, stem, seed, value + gain, scores=scores, **common)
                _trial("none", 1.0, stem, seed, WHOLE + gain, row=f"{strategy} all {stem} {seed}", **common)
        _trial("none", 0, stem, 0, NOTHING, method="none", **common)
    bad = top.child("lr=1e30", {"experiment": name, "row": "lr=1e30", "level": "experiment"})
    bad.fail("loss is not finite <at step 3>")
    with bad:
        pass
    top.finish()
    return top


def _stage(top: Run, stage: str, metrics: dict[str, float]) -> Run:
    run = top.child(stage, {"level": "stage", "stage": stage})
    run.metrics(metrics)
    run.finish()
    return run


def _trial(
    strategy, fraction, stem, seed, value, *, top, name, target, evaluated, scores=None, method="dino", row=None
) -> None:
    row = row or f"{strategy} {fraction} {stem} {seed}"
    columns = {"strategy": strategy, "fraction": fraction, "stem": stem, "backbone": "vit_tiny", "method": method}
    columns |= {"adapt": "none", "seed": seed}
    budget = {"budget": "none" if method == "none" else "epochs=3"}
    tags = {**columns, **budget, "target": target, "experiment": name, "row": row, "level": "experiment"}
    # What two trials share has one artifact, made by one run.
    tags |= {"artifact.metrics": f"evaluate/{fraction} {strategy} {stem} {seed}", "run.metrics": evaluated.id}
    if scores is not None and strategy == "cfs":
        tags |= {"run.scores": scores.id, "run.subset": scores.id}
    assert set(COLUMNS) == columns.keys()
    run = top.child(row, tags)
    run.params({**columns, "select.fraction": fraction, "pretrain.epochs": 3})
    reached = {"mAP": value, "rank1": value + 0.1, "rank5": 0.8, "rank10": 0.9, "mINP": value / 3}
    run.metrics(
        {
            **reached,
            "images": 1000 * fraction,
            "gpu_hours": 4 * fraction + 1,
            "total_seconds": 3600.0,
            "pretrain_steps": 96 * fraction,
        }
    )
    run.finish()
