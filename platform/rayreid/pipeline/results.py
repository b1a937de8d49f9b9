"""Results of an experiment as tables of pandas, read from its artifacts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rayreid.config import Experiment
from rayreid.config.loading import row_labels, rows
from rayreid.errors import UserError
from rayreid.evaluation.metrics import METRICS
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import path_of
from rayreid.pipeline.graph import plan
from rayreid.pipeline.seed_groups import SeedGroup, baseline_of, grouped
from rayreid.pipeline.summary import Row, row_of
from rayreid.storage.artifacts import Artifact

_COST = ("images", "pretrain_steps", "total_seconds", "gpu_hours")
_SPREAD = tuple(f"{name}_std" for name in METRICS)
_GAIN = ("mAP_gain", "mAP_gain_low", "mAP_gain_high")

Plans = Mapping[str, Mapping[str, Artifact]]
"""The artifacts of several experiments: label → role → artifact."""


@dataclass(frozen=True)
class Results:
    """Results that an output root has of an experiment.

    Attributes:
        table: One line per finished row of the file, or per finished trial of a sweep, by label: `mAP`, `rank1`,
            `rank5`, `rank10` and `mINP` in [0, 1], `images`, `pretrain_steps`, `total_seconds`, `gpu_hours`, and
            `cfs_auc` where it is known. With several seeds these are means, `mAP_std` and the like are the standard
            deviations over the seeds, `seeds` is their number, and `mAP_gain`, `mAP_gain_low` and `mAP_gain_high` are
            the difference to the baseline row with its 95 % interval (NaN: not known). The table of a sweep begins
            with the values of its keys. Columns other than `cfs_auc` exist before a row has finished.
        runs: One line per finished row and seed: `row`, `seed`, and the same metrics.
        artifacts: One line per artifact: `row`, `seed`, `role` (`weights`, `model`, `metrics` and so on), `artifact`
            (`stage/id`), `complete`, and its `folder`.
        folder: The folder of the experiment, with `config.yaml`, `results.json` and, with several rows, `cmc.png`; it
            exists once the experiment has been run.
        unfinished: Labels of the rows, with their seeds, that have no metrics yet.
    """

    table: pd.DataFrame
    runs: pd.DataFrame
    artifacts: pd.DataFrame
    folder: Path
    unfinished: tuple[str, ...]

    def artifact(self, role: str, row: str | None = None, seed: int | None = None) -> Path:
        """Return the folder of a complete artifact.

        Args:
            role: Its role, e.g. `model`, `weights`, `metrics`, `target`.
            row: Label of the row (default: the only one).
            seed: Seed of the row (default: the first).

        Raises:
            UserError: There is no such artifact, it is not complete, or several rows have one and none is named.
        """
        found = self.artifacts[self.artifacts["role"] == role]
        if row is not None:
            found = found[found["row"] == row]
        if seed is not None:
            found = found[found["seed"] == seed]
        if found.empty:
            known = ", ".join(dict.fromkeys(self.artifacts["role"]))
            raise UserError(f"no artifact of role {role!r} in row {row!r} with seed {seed!r}; there are: {known}")
        if found["artifact"].nunique() > 1 and row is None:
            raise UserError(f"several rows have an artifact of role {role!r}; name one: {', '.join(self.rows)}")
        first = found.iloc[0]
        if not first["complete"]:
            raise UserError(f"{first['folder']}: this {role} is not complete; run the experiment")
        return Path(first["folder"])

    @property
    def rows(self) -> list[str]:
        """Return the labels of all rows or trials, finished or not."""
        return list(dict.fromkeys(self.artifacts["row"]))

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return str(self.table._repr_html_())


def results_of(
    experiment: Experiment, against: str | None = None, trials: Mapping[str, Experiment] | None = None
) -> Results:
    """Return the results that the output root has of an experiment; nothing is made.

    Args:
        experiment: The experiment.
        against: Label of the row with which the others are compared (default: the first, if there are several seeds).
        trials: The trials by label, if the experiment is a sweep.

    Raises:
        UserError: A row cannot be planned, no row has the label `against`, or an artifact is damaged.
    """
    root = output_root()
    table = rows(experiment) if trials is None else trials
    labels = row_labels(experiment) if trials is None else {label: label for label in trials}
    plans = {label: plan(one, root) for label, one in table.items()}
    done = [row_of(label, table[label], graph) for label, graph in plans.items() if graph["metrics"].complete]
    if experiment.seeds or against is not None:
        lines = _lines_of_groups(done, labels, plans, baseline_of(labels.values(), against))
        columns = ["seeds", *METRICS, *_COST, *_SPREAD, *_GAIN]
    else:
        keys = experiment.sweep.parameters if experiment.sweep else ()
        columns = [*keys, *METRICS, *_COST]
        lines = {row.label: _values(table[row.label], keys) | row.metrics() for row in done}
    finished = {row.label for row in done}
    return Results(
        table=_frame(list(lines.values()), columns).set_axis(pd.Index(list(lines), name="row", dtype=object)),
        runs=_frame(
            [{"row": labels[row.label], "seed": row.seed, **row.metrics()} for row in done],
            ["row", "seed", *METRICS, *_COST],
        ),
        artifacts=_artifacts(table, labels, plans),
        folder=path_of(root, experiment),
        unfinished=tuple(label for label in plans if label not in finished),
    )


def _lines_of_groups(
    done: Sequence[Row], labels: Mapping[str, str], plans: Plans, baseline: str
) -> dict[str, dict[str, Any]]:
    """Return the rows of which all seeds have finished; without differences until the baseline has, too."""
    wanted = list(labels.values())
    have = [labels[row.label] for row in done]
    whole = [row for row in done if have.count(labels[row.label]) == wanted.count(labels[row.label])]
    if baseline in (labels[row.label] for row in whole):
        groups = grouped(whole, labels, plans, baseline)
    else:
        members: dict[str, list[Row]] = {}
        for row in whole:
            members.setdefault(labels[row.label], []).append(row)
        groups = [SeedGroup(label, tuple(runs), baseline, None) for label, runs in members.items()]
    return {group.label: {"seeds": len(group.runs), **group.metrics()} for group in groups}


def _frame(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return lines as a table that has some columns, with lines or without, and then all others that lines have."""
    return pd.DataFrame(lines, columns=list(dict.fromkeys([*columns, *(name for line in lines for name in line)])))


def _values(experiment: Experiment, keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of some keys, which may lead through lists (`select.parts.0.weight`)."""
    tree = experiment.model_dump(mode="json")
    return {key: _value(tree, key.split(".")) for key in keys}


def _value(tree: Any, path: Sequence[str]) -> Any:
    """Return what stands at a path in nested mappings and lists; None if nothing does."""
    for part in path:
        if isinstance(tree, list):
            tree = tree[int(part)] if part.isdigit() and int(part) < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _artifacts(table: Mapping[str, Experiment], labels: Mapping[str, str], plans: Plans) -> pd.DataFrame:
    lines = [
        (labels[label], table[label].seed, role, str(one), one.complete, str(one.path))
        for label, graph in plans.items()
        for role, one in graph.items()
    ]
    return pd.DataFrame(lines, columns=["row", "seed", "role", "artifact", "complete", "folder"])
