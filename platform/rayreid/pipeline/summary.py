"""The table at the end of a run: training images, scores and cost of each row."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from rayreid.config import Experiment
from rayreid.console import Screen, clock
from rayreid.evaluation.metrics import RERANKED, percent, scores_in
from rayreid.pipeline.budget import NO_BUDGET, budget_note, budget_of
from rayreid.pipeline.ingestion import leaked_images
from rayreid.pipeline.selection_graph import ranked_of
from rayreid.selection.provenance import provenance_of
from rayreid.stages.score_meaning import label_of, meaning_of, warnings_of
from rayreid.stages.select import separation_of
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.tracking.store import results_page

TEST_IMAGES = "test_images_in_pool"
"""Name of the metric that counts a target's test images in the pool of a pre-training."""

LEAK_MARK = " †"
"""Mark of results that such images may have raised."""


@dataclass(frozen=True)
class Row:
    """Outcome of one experiment.

    Attributes:
        label: Name of the row in the table.
        target: Dataset of the evaluation, with its edition.
        images: Number of images of the pre-training.
        steps: Number of optimizer steps of the pre-training.
        seconds: Time of the row's own pre-training, fine-tuning, adaptation and evaluation.
        gpu_hours: GPU-hours of the same stages.
        scores: Scores found by `scores_in`.
        test_images: Number of the target's test images in the pool of the pre-training; 0 unless the file allows it.
        auc: AUC of the CFS against the origin of the pool's images; None if the origin is not known.
        warnings: Warnings of the same stages, for example that a pre-training learned little, and of the scores.
        score_meaning: What the order of the scores means, in a word; empty if there are none, or if it is not known.
        budget: Length of the pre-training as the file gives it; see `budget_of`.
        seed: Seed of the experiment.
    """

    label: str
    target: str
    images: int
    steps: int
    seconds: float
    gpu_hours: float
    scores: Mapping[str, float]
    auc: float | None
    warnings: tuple[str, ...] = ()
    test_images: int = 0
    budget: str = NO_BUDGET
    seed: int = 0
    score_meaning: str = ""

    def metrics(self) -> dict[str, float]:
        """Return the outcome as metrics, under the names that are the same in every run."""
        known = {} if self.auc is None else {"cfs_auc": self.auc}
        if self.test_images:
            known[TEST_IMAGES] = self.test_images
        cost = {"images": self.images, "pretrain_steps": self.steps, "total_seconds": self.seconds}
        return {**self.scores, **cost, "gpu_hours": self.gpu_hours, **known}


def row_of(label: str, experiment: Experiment, graph: Mapping[str, Artifact]) -> Row:
    """Return the outcome of a finished experiment from its artifacts' facts."""
    own = [graph[role].facts for role in ("weights", "model", "adapted", "metrics") if role in graph]
    weights = graph["weights"].facts if "weights" in graph else {"images": 0, "steps": 0}
    warnings = [warning for facts in own for warning in facts.get("warnings", ())]
    ranked = ranked_of(graph)
    separation = separation_of(ranked, provenance_of(experiment.pool)) if ranked else None
    meaning = meaning_of(ranked, separation) if ranked else None
    if ranked and meaning:
        warnings += warnings_of(meaning, label_of(ranked))
    return Row(
        label=label,
        target=graph["target"].facts["dataset"],
        images=weights["images"],
        steps=weights["steps"],
        seconds=sum(facts["seconds"] for facts in own),
        gpu_hours=sum(facts.get("gpu_hours", 0.0) for facts in own),
        scores=scores_in(graph["metrics"].facts),
        auc=separation.auc if separation and "scores" in graph else None,
        warnings=tuple(warnings),
        score_meaning=meaning.word if meaning else "",
        test_images=leaked_images(graph["pool"], graph["target"]) if "pool" in graph else 0,
        budget=budget_of(experiment),
        seed=experiment.seed,
    )


def show_table(screen: Screen, rows: Sequence[Row]) -> None:
    """Print the rows side by side."""
    table = Table(title=None, header_style="bold", pad_edge=False)
    table.add_column("")
    shown = columns_of(rows)
    for name in (*shown.values(), "images", "steps", "time"):
        table.add_column(name, justify="right")
    for row in rows:
        quality = [f"{100 * row.scores[name]:.1f}" if name in row.scores else "" for name in shown]
        label = row.label + (LEAK_MARK if row.test_images else "")
        table.add_row(escape(label), *quality, f"{row.images:,}", f"{row.steps:,}", clock(row.seconds))
    screen.console.print(table)
    show_notes(screen, rows)


def columns_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the titles of the scores that a table shows, by their names."""
    shown = {name: percent(name) for name in ("mAP", "rank1", "mINP")}
    if any(f"mAP{RERANKED}" in row.scores for row in rows):
        shown |= {f"mAP{RERANKED}": f"re-ranked {percent('mAP')}", f"rank1{RERANKED}": percent("rank1")}
    return shown


def show_notes(screen: Screen, rows: Sequence[Row]) -> None:
    """Print what a table's numbers depend on: test images in a pool, the target, the budgets, warnings, the AUC."""
    show_leaks(screen, {row.label: row.test_images for row in rows if row.test_images})
    if rows:
        screen.say(escape(f"evaluated on {', '.join(dict.fromkeys(row.target for row in rows))}"))
    note = budget_note((row.budget, row.steps) for row in rows)
    if note:
        screen.say(escape(note))
    for row in rows:
        for warning in row.warnings:
            screen.say(f"[yellow]warning:[/] {escape(row.label or 'this run')}: {escape(warning)}")
    known = next((row.auc for row in rows if row.auc is not None), None)
    if known is not None:
        screen.say(f"CFS against the pool's known origins: AUC {known:.3f} (0.5 is chance)")


def show_leaks(screen: Screen, leaks: Mapping[str, int]) -> None:
    """Print which marked rows were pre-trained on how many test images of their target."""
    for label, count in leaks.items():
        screen.say(f"[red]{LEAK_MARK.strip()} {escape(label)}: its pool holds {count:,} of the target's test images[/]")


def show_hint(screen: Screen, uri: str, experiment_id: str) -> None:
    """Print how to open MLflow on the results of an experiment.

    Args:
        screen: The screen to print to.
        uri: Address of the MLflow store.
        experiment_id: MLflow's id of the experiment.
    """
    if uri.startswith(("http://", "https://")):
        screen.say(escape(f"Compare the runs:  {results_page(uri, experiment_id)}"))
        return
    beside = Path(sys.executable).with_name("mlflow")
    command = os.path.relpath(beside) if beside.exists() else "mlflow"
    line = shlex.join([command, "ui", "--backend-store-uri", uri])
    screen.say(escape(f"Compare the runs:  {line}"))
    screen.say(escape(f"       and open:   {results_page('http://127.0.0.1:5000', experiment_id)}"))


def show_times(screen: Screen, graphs: Iterable[Mapping[str, Artifact]]) -> None:
    """Print the time of each stage, over all distinct artifacts of some experiments."""
    every = {a.id: a for graph in graphs for a in lineage(graph).values() if a.complete}
    spent: dict[str, float] = {}
    for artifact in every.values():
        spent[artifact.stage] = spent.get(artifact.stage, 0.0) + artifact.facts["seconds"]
    screen.say("time by stage:  " + ", ".join(f"{stage} {clock(seconds)}" for stage, seconds in spent.items()))
