"""Execution of experiments: all rows of a file, with missing artifacts made once and the results in one table."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from rayreid.config import Experiment, method_defaults
from rayreid.config.loading import dump, flatten, rows
from rayreid.console import Screen
from rayreid.disk_faults import explained
from rayreid.errors import UserError
from rayreid.evaluation.retrieval_figures import cmc_curve
from rayreid.execution.connection import connect
from rayreid.execution.production import produce
from rayreid.execution.shared_storage import check_storage
from rayreid.files import make_folder, write_atomically
from rayreid.paths import output_root
from rayreid.pipeline.graph import STAGE_ROLE, plan, shared
from rayreid.pipeline.ingestion import make_stores
from rayreid.pipeline.preflight import check, check_workers
from rayreid.pipeline.summary import TEST_IMAGES, Row, row_of, show_hint, show_table, show_times
from rayreid.selection.provenance import provenance_of
from rayreid.stages.score_meaning import TAG, show
from rayreid.stages.select import separation_of
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role
from rayreid.tracking.run import Run, Tracker
from rayreid.tracking.system_metrics import watched

COLUMNS = ("strategy", "fraction", "stem", "backbone", "method", "adapt", "seed")
"""Names of the tags and parameters by which runs are compared; every experiment's run has all of them."""

_LEAST_ROOM = 4 * 2**20  # bytes; a new MLflow database takes 1 MiB, and as much again while it is made

INPUTS = {"pool": "pretrain", "source": "finetune", "target": "evaluate"}
"""The datasets of an experiment by role, and the context under which MLflow logs them."""


@dataclass(frozen=True)
class Session:
    """The output root, the tracking store and the screen of a command."""

    root: Path
    tracker: Tracker
    screen: Screen


def open_session(experiment: Experiment, screen: Screen | None = None, patience: float = 0.0) -> Session:
    """Open the output root and its tracking store.

    Args:
        experiment: The experiment, which names the experiment in MLflow.
        screen: Shows progress (default: a screen for the terminal).
        patience: Seconds to wait for a tracking server that does not answer: 0 at the start of a command, which can be
            repeated; `PATIENCE_SECONDS` for work that begins in the middle of a command.

    Raises:
        UserError: The root cannot be created or written, or the tracking server does not answer.
    """
    root = output_root()
    make_folder(root)
    with explained(root), tempfile.TemporaryFile(dir=root) as probe:
        probe.write(bytes(_LEAST_ROOM))
        probe.flush()
    screen = screen or Screen()
    return Session(root, Tracker(root, experiment.name, lambda line: screen.say(escape(line)), patience), screen)


def run(experiment: Experiment) -> list[Row]:
    """Run all rows of an experiment, skipping stages that are complete, and print the table.

    Raises:
        UserError: The user can fix the cause, which is checked before anything starts wherever possible.
    """
    table = rows(experiment)
    root = output_root()
    plans = {label: plan(row, root) for label, row in table.items()}
    check(table.values(), plans)
    session = open_session(experiment)
    with connect(), experiment_run(session, experiment) as parent, watched(parent):
        check_storage()
        check_workers(table.values())
        if experiment.compare:
            results = _run_rows(table, plans, session, parent)
        else:
            results = [run_row(experiment.name, table[experiment.name], session, parent)]
        write_results(session, experiment, results)
        if experiment.compare:
            draw_curves(plans, folder_of(root, experiment) / "cmc.png", parent)
        show_table(session.screen, results)
        show_times(session.screen, plans.values())
        show_hint(session.screen, session.tracker.uri, session.tracker.experiment_id)
    return results


def run_stage(experiment: Experiment, stage: str) -> list[Artifact]:
    """Run one stage of an experiment as it stands in the file, and the stages that it needs.

    Raises:
        UserError: As for `run`; or the experiment does not use that stage.
    """
    label, row = next(iter(rows(experiment.model_copy(update={"compare": []})).items()))
    graph = plan(row, output_root())
    check([row], {label: graph})
    wanted = [artifact for role, artifact in graph.items() if Role(role).kind in STAGE_ROLE[stage]]
    if not wanted:
        raise UserError(f"stage {stage}: experiment {experiment.name!r} has no use for it as configured")
    session = open_session(experiment)
    with connect(), experiment_run(session, row) as parent, watched(parent):
        check_storage()
        check_workers([row])
        make_stores(wanted, {label: row}, {label: graph}, parent, session.screen, tags_of(row))
        earlier = {artifact.id for artifact in wanted if artifact.complete}
        made = [produce(artifact, parent, session.screen, tags_of(row)) for artifact in wanted]
    for artifact in made:
        if stage == "score":
            separation = separation_of(artifact, provenance_of(row.pool))
            show(session.screen, artifact, separation, again=artifact.id in earlier)
        session.screen.say(escape(str(artifact.path)))
    return made


def run_row(
    label: str, experiment: Experiment, session: Session, run: Run, stopping: MedianStopping | None = None
) -> Row:
    """Produce one experiment's metrics under its own MLflow run.

    Raises:
        StoppedEarly: The median rule stopped the pre-training.
    """
    graph = plan(experiment, session.root, stopping)
    tags = {**tags_of(experiment), "row": label}
    run.tags(tags)
    make_stores(graph.values(), {label: experiment}, {label: graph}, run, session.screen, tags)
    produce(graph["metrics"], run, session.screen, tags)
    for role, artifact in graph.items():
        run.tags({f"artifact.{role}": artifact, f"run.{role}": artifact.facts["run"]})
    for role, context in INPUTS.items():
        if role in graph:
            facts = graph[role].facts
            run.dataset(role, facts["fingerprint"], str(graph[role].path), {"images": facts["images"]}, context)
    row = row_of(label, graph, provenance_of(experiment.pool))
    known = {TEST_IMAGES: row.test_images, TAG: row.score_meaning}
    run.tags({"target": row.target, **{name: value for name, value in known.items() if value}})
    run.metrics(row.metrics())
    return row


def _run_rows(
    table: Mapping[str, Experiment], plans: Mapping[str, Mapping[str, Artifact]], session: Session, parent: Run
) -> list[Row]:
    tags = shared_tags(next(iter(table.values())))
    everything = [artifact for graph in plans.values() for artifact in graph.values()]
    make_stores(everything, table, plans, parent, session.screen, tags)
    for artifact in shared(plans):
        produce(artifact, parent, session.screen, tags)
    results = []
    for label, experiment in table.items():
        session.screen.say(f"[bold cyan]{escape(label)}[/]")
        with experiment_run(session, experiment, label, parent) as run:
            results.append(run_row(label, experiment, session, run))
    return results


def experiment_run(
    session: Session, experiment: Experiment, label: str | None = None, parent: Run | None = None
) -> Run:
    """Return the MLflow run of an experiment or row, either resumed from an earlier call or new.

    For a new run, the resolved configuration is logged, and written to `<root>/experiments/`.
    """
    folder = folder_of(session.root, experiment)
    note = _note(folder, parent)
    if note.exists():
        continued = session.tracker.resume(json.loads(note.read_text())["run"])
        if continued is not None:
            return continued
    name = label or experiment.name
    several = experiment.compare or experiment.sweep
    tags = common_tags(experiment) if several else tags_of(experiment)
    tags |= {"experiment": experiment.name, "config": digest_of(experiment)}
    tags["level"] = "sweep" if experiment.sweep else "comparison" if experiment.compare else "experiment"
    run = parent.child(name, tags) if parent else session.tracker.run(name, tags)
    write_atomically(folder / "config.yaml", dump(experiment))
    write_atomically(note, json.dumps({"run": run.id}))
    run.text(dump(experiment), "config.yaml")
    run.params({**_params(experiment), **({} if several else {name: tags[name] for name in COLUMNS})})
    return run


def is_recorded(session: Session, experiment: Experiment, parent: Run) -> bool:
    """Return whether MLflow has a finished run of the experiment under this parent."""
    note = _note(folder_of(session.root, experiment), parent)
    return note.exists() and session.tracker.status(json.loads(note.read_text())["run"]) == "FINISHED"


def _note(folder: Path, parent: Run | None) -> Path:
    """Return the path of the file that names the MLflow run."""
    return folder / f"run{'-' + parent.id if parent else ''}.json"


def _params(experiment: Experiment) -> dict[str, Any]:
    """Return the configuration as MLflow parameters.

    A stage that does not run has only its `method: none`; a pre-training omits the keys that its method does not use.
    """
    tree = experiment.model_dump(mode="json", exclude={"compare", "sweep", "matrix"})
    method = experiment.pretrain.method
    if method == "none":
        tree["pretrain"] = {"method": "none"}
    else:
        tree["pretrain"] = {key: value for key, value in tree["pretrain"].items() if method_defaults.uses(method, key)}
    if experiment.adapt.method == "none":
        tree["adapt"] = {"method": "none"}
    return flatten(tree)


def folder_of(root: Path, experiment: Experiment) -> Path:
    """Return the folder of an experiment's configuration and table: `<root>/experiments/<name>-<config hash>`."""
    folder = root / "experiments" / f"{experiment.name}-{digest_of(experiment)}"
    make_folder(folder)
    return folder


def digest_of(experiment: Experiment) -> str:
    """Return a hash of the whole configuration, by which runs of exactly this file are found."""
    return hashlib.blake2b(dump(experiment).encode(), digest_size=4).hexdigest()


def tags_of(experiment: Experiment) -> dict[str, Any]:
    """Return the tags by which runs are compared."""
    share = "count" if experiment.select.share is None else experiment.select.share
    return {
        "backbone": experiment.backbone.name,
        "stem": experiment.backbone.stem,
        "method": experiment.pretrain.method,
        "strategy": experiment.select.strategy if experiment.selects else "none",
        "fraction": 0 if experiment.pretrain.method == "none" else share,
        "target": experiment.target.dataset,
        "adapt": experiment.adapt.method,
        "seed": experiment.seed,
    }


def common_tags(experiment: Experiment) -> dict[str, Any]:
    """Return the tags that apply to several experiments together, without those in which these differ."""
    tags = tags_of(experiment)
    return {name: tags[name] for name in ("backbone", "target")}


def shared_tags(experiment: Experiment) -> dict[str, Any]:
    """Return the tags of stages that several experiments share."""
    return common_tags(experiment) | {"shared": "true"}


def write_results(session: Session, experiment: Experiment, results: list[Row]) -> None:
    """Write the table as JSON next to the configuration."""
    content = [{"label": row.label, **row.metrics()} for row in results]
    write_atomically(folder_of(session.root, experiment) / "results.json", json.dumps(content, indent=1))


def draw_curves(plans: Mapping[str, Mapping[str, Artifact]], path: Path, run: Run) -> None:
    """Draw the CMC curves of all rows in one plot, next to the configuration and in MLflow."""
    curves = {label: np.load(graph["metrics"].path / "cmc.npy") for label, graph in plans.items()}
    cmc_curve(curves).savefig(path)
    run.file(path, "figures")
