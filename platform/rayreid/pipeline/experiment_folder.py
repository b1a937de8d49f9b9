"""The folder of an experiment under the output root: its configuration, its table and its curves."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rayreid.config import Experiment
from rayreid.config.loading import dump, to_yaml
from rayreid.evaluation.retrieval_figures import cmc_curve
from rayreid.evaluation.stored import read_curve
from rayreid.files import make_folder, write_atomically
from rayreid.pipeline.summary import Row
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.run import Run

LATER: dict[str, Any] = {
    "pretrain.steps": None,
    "proxy.pretrain.steps": None,
    "evaluate.feature": "before",
    "select.levels": "auto",
    "select.similarity": 0.98,
    "select.keep": 4,
    "select.mode": "nearest",
    "select.centre": "auto",
    "select.token": "class",
    "select.rules": {},
    "select.by": ["height", "sharpness", "contrast"],
    "select.parts": [],
}
"""Keys that were added after experiments had been run, with their defaults."""


def folder_of(root: Path, experiment: Experiment) -> Path:
    """Return the folder of an experiment (see `path_of`), which is created if it does not exist."""
    folder = path_of(root, experiment)
    make_folder(folder)
    return folder


def path_of(root: Path, experiment: Experiment) -> Path:
    """Return where an experiment's configuration and table are: `<root>/experiments/<name>-<config hash>`."""
    return root / "experiments" / f"{experiment.name}-{digest_of(experiment)}"


def digest_of(experiment: Experiment) -> str:
    """Return a hash of the whole configuration, by which runs of exactly this file are found.

    Keys of `LATER` do not count at their default, so that runs of older versions are found, too.
    """
    tree = yaml.safe_load(dump(experiment))
    for path, default in LATER.items():
        *sections, key = path.split(".")
        section = functools.reduce(lambda inner, name: inner[name], sections, tree)
        if section.get(key, default) == default:
            section.pop(key, None)
    return hashlib.blake2b(to_yaml(tree).encode(), digest_size=4).hexdigest()


def contents(results: Iterable[Row]) -> list[dict[str, Any]]:
    """Return outcomes as the entries of `results.json`."""
    return [{"label": row.label, **row.metrics()} for row in results]


def write_results(root: Path, experiment: Experiment, content: Sequence[Mapping[str, Any]]) -> None:
    """Write the table as JSON next to the configuration."""
    write_atomically(folder_of(root, experiment) / "results.json", json.dumps(content, indent=1))


def draw_curves(plans: Mapping[str, Mapping[str, Artifact]], labels: Mapping[str, str], path: Path, run: Run) -> None:
    """Draw the CMC curves of all rows, each the mean over its seeds, next to the configuration and in MLflow."""
    found: dict[str, list[np.ndarray]] = {}
    for label, graph in plans.items():
        found.setdefault(labels[label], []).append(read_curve(graph["metrics"].path))
    cmc_curve({label: np.mean(curves, axis=0) for label, curves in found.items()}).savefig(path)
    run.file(path, "figures")
