"""The artifact ids of every file in `experiments/`: what exists on users' disks is found again by them.

A new configuration field is ADDED (left out of the identity at its default) or RUNTIME (never part of it). Where a
stage's result changes on purpose, raise its VERSION and write the pins again: `python tests/test_artifact_ids.py`.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayreid.config import Experiment
from rayreid.config.loading import load_experiment, rows
from rayreid.models.hub import is_name
from rayreid.pipeline.experiment_folder import digest_of
from rayreid.pipeline.graph import plan
from rayreid.storage.artifacts import lineage
from rayreid.sweeps.trials import corners, trials

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
PINS = Path(__file__).parent / "artifact_ids.json"
FILES = sorted(
    path.relative_to(EXPERIMENTS).as_posix() for path in EXPERIMENTS.rglob("*.yaml") if path.name != "defaults.yaml"
)


def experiments_of(file: str) -> dict[str, Experiment]:
    """All experiments of a file by label: its rows or trials; of an Optuna search those that are checked beforehand."""
    experiment = load_experiment(EXPERIMENTS / file)
    if experiment.sweep is None:
        return rows(experiment)
    return trials(experiment) or {f"corner {number}": one for number, one in enumerate(corners(experiment))}


def ids_of(file: str, data: Path) -> dict[str, dict[str, str]]:
    """Every artifact that a file's experiments stand on: `stage/id` by row and role.

    Args:
        file: below `experiments/`.
        data: an empty folder, to take the place of RAYREID_DATA.
    """
    found = experiments_of(file)
    for experiment in found.values():
        if experiment.pool.provenance is not None:  # read when the graph is made, but part of no id
            _write(data / experiment.pool.provenance, f"key,origin\na.jpg,{experiment.pool.relevant}\nb.jpg,other\n")
        weights = experiment.backbone.weights
        if weights is not None and not is_name(weights):  # the id holds the content's checksum, so that of this line
            _write(data / weights, "weights\n")
        if experiment.select.list is not None:
            _write(data / experiment.select.list, "a.jpg\n")
    return {label: dict(_artifacts(experiment)) for label, experiment in found.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _artifacts(experiment: Experiment) -> Iterator[tuple[str, str]]:
    graph = plan(experiment, Path("outputs"))
    yield from ((role, str(artifact)) for role, artifact in graph.items())
    unnamed = set(map(str, lineage(graph).values())) - set(map(str, graph.values()))
    assert not unnamed, f"needed, but no role of the graph: {sorted(unnamed)}"


@pytest.mark.parametrize("file", FILES)
def test_no_artifact_id_changes(file, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path))
    pinned, found = json.loads(PINS.read_text()).get(file, {}), ids_of(file, tmp_path)
    assert list(found) == list(pinned), f"experiments/{file}: other rows than are pinned"
    changed = [
        f"experiments/{file}, row {label!r}, {role}: {pinned[label].get(role)} -> {found[label].get(role)}"
        for label in found
        for role in sorted(pinned[label].keys() | found[label].keys())
        if pinned[label].get(role) != found[label].get(role)
    ]
    assert not changed, "artifact ids changed; a new config field is ADDED or RUNTIME:\n" + "\n".join(changed)


def test_a_row_at_one_of_several_seeds_is_the_file_with_that_seed(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path))
    several = load_experiment(EXPERIMENTS / "demo.yaml", ["seeds=[0, 3]"])
    for seed in several.seeds:
        one = load_experiment(EXPERIMENTS / "demo.yaml", [f"seed={seed}", "proxy.seed=0"])
        for label, row in rows(one).items():
            assert dict(_artifacts(rows(several)[f"{label} · seed {seed}"])) == dict(_artifacts(row))
            assert digest_of(rows(several)[f"{label} · seed {seed}"]) == digest_of(row)


@pytest.mark.parametrize(("file", "digest"), [("market1501_resplit", "0cbbc532"), ("usl_resplit", "6fdec8fc")])
def test_the_digest_of_a_file_stays(file, digest):
    """`<root>/experiments/<name>-<digest>/` and the runs in MLflow are found by it; see `experiment_folder.LATER`."""
    assert digest_of(load_experiment(EXPERIMENTS / f"{file}.yaml")) == digest


def test_every_pinned_file_exists():
    assert sorted(json.loads(PINS.read_text())) == FILES


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        os.environ["RAYREID_DATA"] = empty
        PINS.write_text(json.dumps({file: ids_of(file, Path(empty)) for file in FILES}, indent=1) + "\n")
