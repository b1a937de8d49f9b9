"""What a finished output root holds, without times: two roots of the same experiment must hold the same."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

_TIMES = ("seconds", "resumed", "run", "finished", "git_sha", "gpu_hours", "machine", "time", "writer", "wait")
_PACE = ("images_per_second", "seconds_epoch", "_seconds", "memory", "_mib")
_SCRATCH = (".tmp", ".damaged-")


def contents(root: Path) -> dict[str, Any]:
    """Return, by name, what each artifact and result of an output root holds."""
    found: dict[str, Any] = {}
    for folder in sorted(path.parent for path in root.glob("*/*/artifact.json")):
        name = f"{folder.parent.name}/{folder.name}"
        record = (folder / "artifact.json").read_text().replace(str(root), "ROOT")
        found[f"{name} facts"] = _facts(json.loads(record)["facts"])
        for path in sorted(folder.rglob("*")):
            read = _READERS.get(path.suffix)
            if read is not None and path.is_file():
                found[f"{name}/{path.relative_to(folder)}"] = read(path)
    return found


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs, is missing or too much."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def litter(root: Path) -> list[str]:
    """Return the files that a finished root should not hold: unfinished and damaged ones, leases, owed entries."""
    files = [path for path in root.rglob("*") if path.is_file()]
    left = [path for path in files if any(part in str(path) for part in _SCRATCH) or "lease" in path.name]
    left += [path for path in files if "undelivered" in path.parts]
    return sorted(str(path.relative_to(root)) for path in set(left))


def histories(uri: str, root: Path) -> dict[str, Any]:
    """Return what MLflow has of each artifact's run: its status, parameters, and points of metrics, without times."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found: dict[str, Any] = {}
    for path in sorted(root.glob("*/*/artifact.json")):
        name = f"{path.parent.parent.name}/{path.parent.name}"
        run = client.get_run(json.loads(path.read_text())["facts"]["run"])
        found[f"MLflow: status of {name}"] = run.info.status
        found[f"MLflow: params of {name}"] = dict(run.data.params)
        for metric in filter(_counts, run.data.metrics):
            points = client.get_metric_history(run.info.run_id, metric)
            found[f"MLflow: {metric} of {name}"] = sorted((point.step, point.value) for point in points)
    return found


def runs_left_open(uri: str) -> int:
    """Return the number of runs that MLflow still shows as running."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return len(client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000))


def _counts(name: str) -> bool:
    """Return whether a value of that name is a result rather than a time or a pace."""
    return name not in _TIMES and not name.endswith(_PACE) and not name.startswith("system/")


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if _counts(name)}


def _tensors(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        names = file.keys()  # not a dictionary: it cannot be iterated over
        return {name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in names}


def _journal(path: Path) -> list[list[tuple[str, float]]]:
    """Return one row per step, the last value of each metric: a step may be made again after a kill."""
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line) if line.startswith("{") and line.endswith("}") else {"step": -2}
        steps.setdefault(row["step"], {}).update({name: value for name, value in row.items() if _counts(name)})
    return [sorted(row.items()) for step, row in sorted(steps.items()) if step > -2]


_READERS = {
    ".safetensors": _tensors,
    ".npy": lambda path: hashlib.sha256(np.load(path).tobytes()).hexdigest(),
    ".parquet": lambda path: pq.read_table(path).to_pylist(),
    ".arrow": lambda path: hashlib.sha256(path.read_bytes()).hexdigest(),
    ".jsonl": _journal,
}
