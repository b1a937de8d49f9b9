"""Cross evaluation of every model on every target: one evaluation per pair, one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from rayreid.config import Experiment, Source
from rayreid.config.loading import rows
from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.evaluation.metrics import scores_in
from rayreid.evaluation.retrieval_figures import score_matrix
from rayreid.execution.connection import connect
from rayreid.execution.production import produce
from rayreid.execution.shared_storage import check_storage
from rayreid.files import write_atomically
from rayreid.paths import output_root
from rayreid.pipeline.csv_text import csv_of
from rayreid.pipeline.dataset_facts import Datasets, check_answers
from rayreid.pipeline.experiment_folder import folder_of
from rayreid.pipeline.experiment_runner import experiment_run, open_session
from rayreid.pipeline.graph import plan
from rayreid.pipeline.ingestion import leaked_images, make_stores, refuse_leak
from rayreid.pipeline.needed_artifacts import needed, record_needed
from rayreid.pipeline.preflight import check, check_workers
from rayreid.pipeline.summary import LEAK_MARK, TEST_IMAGES, show_leaks
from rayreid.pipeline.tags import tags_of
from rayreid.stages import evaluate, given_model, ingest
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.names import slug
from rayreid.tracking.run import Run


@dataclass(frozen=True)
class Cell:
    """One model on one target.

    Attributes:
        model, target: Labels of the two.
        edition: The dataset of the target, with its version.
        artifact: The evaluation.
        test_images: Number of the target's test images in the pool that the model was pre-trained on.
    """

    model: str
    target: str
    edition: str
    artifact: Artifact
    test_images: int = 0

    def row(self) -> dict[str, Any]:
        """Return the cell as a row of the table's files."""
        facts = self.artifact.facts
        labels = {"model": self.model, "target": self.target, "edition": self.edition}
        told = {"queries": facts["queries"], TEST_IMAGES: self.test_images, "artifact": str(self.artifact)}
        return {**labels, **scores_in(facts), **told}


def matrix(experiment: Experiment) -> list[Cell]:
    """Evaluate all models of a file on all its targets, train missing models first, and print one table.

    The models are the file's rows and `matrix.models`; the targets are those of the rows and `matrix.targets`.

    Raises:
        UserError: There is no model or no target, two have the same name, or making one fails. Errors are raised before
            anything starts wherever that is possible.
    """
    root = output_root()
    own = rows(experiment.model_copy(update={"sweep": None})) if experiment.matrix.rows else {}
    plans = {label: plan(row, root) for label, row in own.items()}
    models = {label: graph["metrics"].inputs["model"] for label, graph in plans.items()} | _given(experiment, root, own)
    targets = _targets(experiment, own)
    if not models or not targets:
        raise UserError("matrix.rows is false: name the models in matrix.models, and the datasets in matrix.targets")
    stores = {label: ingest.plan(root, source, experiment.ingest) for label, source in targets.items()}
    if own:
        check(own.values(), plans)
    screen = Screen()
    datasets = Datasets(root, 0, lambda line: screen.say(escape(line)))
    for label, source in targets.items():
        check_answers(f"target {label}", source.dataset, datasets.look(f"target {label}", source))
    session = open_session(experiment, screen)
    planned = {
        f"{model} on {target}": evaluate.plan(store, network, experiment.evaluate)
        for model, network in models.items()
        for target, store in stores.items()
    }
    with connect(), experiment_run(session, experiment) as run:
        record_needed(folder_of(root, experiment), needed(experiment, [planned], root))
        check_storage()
        check_workers(own.values())
        if own:
            make_stores([*stores.values(), *models.values()], own, plans, run, session.screen, tags_of(experiment))
        for label, graph in plans.items():
            for target, store in stores.items():
                if "pool" in graph:
                    refuse_leak(own[label].pool, f"the target {target}", graph["pool"], store)
        cells = []
        for model, network in models.items():
            tags = {**(tags_of(own[model]) if model in own else {}), "row": model}
            produce(network, run, session.screen, tags)
            for target, store in stores.items():
                session.screen.say(f"[bold cyan]{escape(model)} on {escape(target)}[/]")
                cell = evaluate.plan(store, network, experiment.evaluate)
                produce(cell, run, session.screen, {**tags, "target": target})
                leaked = leaked_images(plans[model]["pool"], store) if "pool" in plans.get(model, {}) else 0
                cells.append(Cell(model, target, store.facts["dataset"], cell, leaked))
        _keep(cells, folder_of(root, experiment), run)
        _show(session.screen, cells)
    session.tracker.check_delivered()
    return cells


def cells_of(experiment: Experiment, root: Path) -> dict[tuple[str, str], Artifact]:
    """Return the evaluations of a matrix by the labels of model and target.

    Raises:
        UserError: See `matrix`.
    """
    own = rows(experiment.model_copy(update={"sweep": None})) if experiment.matrix.rows else {}
    models = {label: plan(row, root)["metrics"].inputs["model"] for label, row in own.items()}
    models |= _given(experiment, root, own)
    stores = {label: ingest.plan(root, one, experiment.ingest) for label, one in _targets(experiment, own).items()}
    return {
        (model, target): evaluate.plan(store, network, experiment.evaluate)
        for model, network in models.items()
        for target, store in stores.items()
    }


def _given(experiment: Experiment, root: Path, own: Mapping[str, Experiment]) -> dict[str, Artifact]:
    """Return the user's own models, by name."""
    for name in experiment.matrix.models:
        if name in own:
            raise UserError(f"matrix.models: a row is also called {name!r}; rename one of them")
    return {
        name: given_model.plan(root, checkpoint, experiment.backbone)
        for name, checkpoint in experiment.matrix.models.items()
    }


def _targets(experiment: Experiment, own: Mapping[str, Experiment]) -> dict[str, Source]:
    """Return the targets by label, each dataset once; a label that is taken is followed by the folder."""
    found: dict[str, Source] = {}
    known: set[str] = set()
    for row in own.values():
        identity = json.dumps(row.target.identity(), sort_keys=True)
        if identity not in known:
            known.add(identity)
            name = row.target.dataset
            found[name if name not in found else f"{name} {row.target.root or len(found)}"] = row.target
    for target in experiment.matrix.targets:
        identity = json.dumps(target.source.identity(), sort_keys=True)
        if identity in known:
            continue
        if target.label in found:
            raise UserError(f"matrix.targets: two targets are called {target.label!r}; give one a name")
        known.add(identity)
        found[target.label] = target.source
    return found


def _keep(cells: list[Cell], folder: Path, run: Run) -> None:
    """Write the table as JSON, CSV and figure next to the configuration, and log them to MLflow."""
    content = [cell.row() for cell in cells]
    write_atomically(folder / "matrix.json", json.dumps(content, indent=1))
    write_atomically(folder / "matrix.csv", csv_of(list(content[0]), content))
    models, targets = _labels(cells)
    shape = (len(models), len(targets))
    values, firsts = (np.array([row[name] for row in content]).reshape(shape) for name in ("mAP", "rank1"))
    notes = [[f"Rank-1 {100 * value:.1f}" for value in line] for line in firsts]
    figure = score_matrix(values, notes, models, list(targets.values()), "mAP, %")
    figure.savefig(folder / "matrix.png")
    for name in ("matrix.json", "matrix.csv"):
        run.file(folder / name)
    run.file(folder / "matrix.png", "figures")
    if leaked := max(cell.test_images for cell in cells):
        run.tags({TEST_IMAGES: leaked})
    for row in content:
        run.metrics({f"{name}.{slug(row['model'])}.{slug(row['target'])}": row[name] for name in ("mAP", "rank1")})


def _labels(cells: list[Cell]) -> tuple[list[str], dict[str, str]]:
    """Return the models, and the targets with their column titles: the edition, after a name of its own."""
    editions = {cell.target: cell.edition for cell in cells}
    return list(dict.fromkeys(cell.model for cell in cells)), {
        target: edition if edition.startswith(target) else f"{target} ({edition})"
        for target, edition in editions.items()
    }


def _show(screen: Screen, cells: list[Cell]) -> None:
    models, targets = _labels(cells)
    table = Table(header_style="bold", pad_edge=False, title="mAP / Rank-1, %", title_justify="left")
    table.add_column("")
    for title in targets.values():
        table.add_column(escape(title), justify="right")
    found = {(cell.model, cell.target): cell for cell in cells}
    for model in models:
        table.add_row(escape(model), *(_scores(found[model, target]) for target in targets))
    screen.console.print(table)
    show_leaks(screen, {cell.model: cell.test_images for cell in cells if cell.test_images})


def _scores(cell: Cell) -> str:
    facts = cell.artifact.facts
    return f"{100 * facts['mAP']:.1f} / {100 * facts['rank1']:.1f}{LEAK_MARK if cell.test_images else ''}"
