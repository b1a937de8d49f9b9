"""Execution of experiments: all rows of a file, with missing artifacts made once and the results in one table."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from rayreid.config import Experiment, method_defaults
from rayreid.config.loading import dump, flatten, row_labels, rows
from rayreid.console import Screen
from rayreid.disk_faults import explained
from rayreid.errors import UserError
from rayreid.execution.connection import connect
from rayreid.execution.production import produce
from rayreid.execution.shared_storage import check_storage
from rayreid.files import make_folder, write_atomically
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import contents, digest_of, draw_curves, folder_of, write_results
from rayreid.pipeline.graph import STAGE_ROLE, plan, shared
from rayreid.pipeline.ingestion import make_stores
from rayreid.pipeline.needed_artifacts import needed, record_needed
from rayreid.pipeline.preflight import check, check_workers
from rayreid.pipeline.seed_groups import baseline_of, grouped, parent_metrics, show_groups
from rayreid.pipeline.summary import TEST_IMAGES, Row, row_of, show_hint, show_table, show_times
from rayreid.pipeline.tags import COLUMNS, budget_tags, common_tags, shared_tags, tags_of
from rayreid.selection.provenance import provenance_of
from rayreid.stages.score_meaning import TAG, show
from rayreid.stages.select import separation_of
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.roles import Role
from rayreid.tracking.run import Run
from rayreid.tracking.run_note import RunNote
from rayreid.tracking.system_metrics import watched
from rayreid.tracking.tracker import Tracker

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


def run(experiment: Experiment, against: str | None = None) -> list[Row]:
    """Run all rows of an experiment, with all its seeds, skipping stages that are complete, and print the table.

    Args:
        experiment: The experiment.
        against: Label of the row with which the others are compared query by query. None: the first row if the file
            has several seeds; with one seed there is no such comparison.

    Returns:
        The outcomes in the order in which they were run: all rows with the first seed, then all with the second.

    Raises:
        UserError: The user can fix the cause, which is checked before anything starts wherever possible.
    """
    table, labels = rows(experiment), row_labels(experiment)
    baseline = baseline_of(labels.values(), against)
    root = output_root()
    plans = {label: plan(row, root) for label, row in table.items()}
    check(table.values(), plans)
    session = open_session(experiment)
    with connect(), experiment_run(session, experiment) as parent, watched(parent):
        record_needed(folder_of(root, experiment), needed(experiment, plans.values(), root))
        check_storage()
        check_workers(table.values())
        if experiment.compares:
            results = _run_rows(table, labels, plans, session, parent)
            parent.tags(budget_tags(results))
            draw_curves(plans, labels, folder_of(root, experiment) / "cmc.png", parent)
        else:
            results = [run_row(experiment.name, table[experiment.name], session, parent)]
        if experiment.seeds or against is not None:
            groups = grouped(results, labels, plans, baseline)
            write_results(root, experiment, [group.content() for group in groups])
            parent.metrics(parent_metrics(groups))
            show_groups(session.screen, groups)
        else:
            write_results(root, experiment, contents(results))
            show_table(session.screen, results)
        show_times(session.screen, plans.values())
        show_hint(session.screen, session.tracker.uri, session.tracker.experiment_id)
    session.tracker.check_delivered()
    return results


def run_stage(experiment: Experiment, stage: str) -> list[Artifact]:
    """Run one stage of an experiment as it stands in the file, and the stages that it needs.

    Raises:
        UserError: As for `run`; or the experiment does not use that stage.
    """
    row = experiment.alone
    graph = plan(row, output_root())
    check([row], {row.name: graph})
    wanted = [artifact for role, artifact in graph.items() if Role(role).kind in STAGE_ROLE[stage]]
    if not wanted:
        raise UserError(f"stage {stage}: experiment {experiment.name!r} has no use for it as configured")
    session = open_session(experiment)
    with connect(), experiment_run(session, row) as parent, watched(parent):
        record_needed(folder_of(session.root, row), needed(row, [graph], session.root))
        check_storage()
        check_workers([row])
        make_stores(wanted, {row.name: row}, {row.name: graph}, parent, session.screen, tags_of(row))
        earlier = {artifact.id for artifact in wanted if artifact.complete}
        made = [produce(artifact, parent, session.screen, tags_of(row)) for artifact in wanted]
    for artifact in made:
        if stage == "score":
            separation = separation_of(artifact, provenance_of(row.pool))
            show(session.screen, artifact, separation, again=artifact.id in earlier)
        session.screen.say(escape(str(artifact.path)))
    session.tracker.check_delivered()
    return made


def run_row(
    label: str,
    experiment: Experiment,
    session: Session,
    run: Run,
    stopping: MedianStopping | None = None,
    row: str | None = None,
) -> Row:
    """Produce one experiment's metrics under its own MLflow run.

    Args:
        label: The label of the experiment.
        experiment: The experiment.
        session: The output root, the tracking store and the screen.
        run: Its MLflow run.
        stopping: Rule that may stop the pre-training early; None: never.
        row: Label of its row in the file, the same for all seeds (default: `label`).

    Raises:
        StoppedEarly: The median rule stopped the pre-training.
    """
    graph = plan(experiment, session.root, stopping)
    record_needed(folder_of(session.root, experiment), needed(experiment, [graph], session.root))
    tags = {**tags_of(experiment), "row": row or label}
    run.tags(tags)
    make_stores(graph.values(), {label: experiment}, {label: graph}, run, session.screen, tags)
    produce(graph["metrics"], run, session.screen, tags)
    for role, artifact in graph.items():
        run.tags({f"artifact.{role}": artifact, f"run.{role}": artifact.facts["run"]})
    for role, context in INPUTS.items():
        if role in graph:
            facts = graph[role].facts
            run.dataset(role, facts["fingerprint"], str(graph[role].path), {"images": facts["images"]}, context)
    outcome = row_of(label, experiment, graph)
    known = {TEST_IMAGES: outcome.test_images, TAG: outcome.score_meaning}
    run.tags({"target": outcome.target, **{name: value for name, value in known.items() if value}})
    run.metrics(outcome.metrics())
    return outcome


def _run_rows(
    table: Mapping[str, Experiment],
    labels: Mapping[str, str],
    plans: Mapping[str, Mapping[str, Artifact]],
    session: Session,
    parent: Run,
) -> list[Row]:
    tags = shared_tags(next(iter(table.values())))
    everything = [artifact for graph in plans.values() for artifact in graph.values()]
    make_stores(everything, table, plans, parent, session.screen, tags)
    common, results = shared(plans), []
    for part in _seed_by_seed(labels):
        used = lineage({f"{label} {role}": one for label in part for role, one in plans[label].items()})
        for artifact in common:
            if artifact.id in used:
                produce(artifact, parent, session.screen, tags)
        for label in part:
            session.screen.say(f"[bold cyan]{escape(label)}[/]")
            with experiment_run(session, table[label], label, parent) as run:
                results.append(run_row(label, table[label], session, run, row=labels[label]))
    return results


def _seed_by_seed(labels: Mapping[str, str]) -> list[list[str]]:
    """Return the labels of all rows with the first seed, then of all with the second; see `row_labels`."""
    parts: list[list[str]] = []
    run_of: dict[str, int] = {}
    for label, row in labels.items():
        number = run_of[row] = run_of.get(row, -1) + 1
        parts.extend([] for _ in range(len(parts), number + 1))
        parts[number].append(label)
    return parts


def experiment_run(
    session: Session, experiment: Experiment, label: str | None = None, parent: Run | None = None
) -> Run:
    """Return the MLflow run of an experiment or row, either resumed from an earlier call or new.

    For a new run, the resolved configuration is logged, and written to `<root>/experiments/`.
    """
    folder = folder_of(session.root, experiment)
    note = _note(folder, parent)
    begun = note.read()
    if begun is not None:
        continued = session.tracker.resume(begun)
        if continued is not None:
            return continued
    name = label or experiment.name
    several = experiment.compares or experiment.sweep
    tags = common_tags(experiment) if several else tags_of(experiment)
    tags |= {"experiment": experiment.name, "config": digest_of(experiment)}
    tags["level"] = "sweep" if experiment.sweep else "comparison" if experiment.compares else "experiment"
    make_folder(folder)
    run = session.tracker.run(name, tags, parent, note)
    write_atomically(folder / "config.yaml", dump(experiment))
    run.text(dump(experiment), "config.yaml")
    run.params({**_params(experiment), **({} if several else {name: tags[name] for name in COLUMNS})})
    note.write(run.id)
    return run


def is_recorded(session: Session, experiment: Experiment, parent: Run) -> bool:
    """Return whether MLflow has a finished run of the experiment under this parent."""
    begun = _note(folder_of(session.root, experiment), parent).read()
    return begun is not None and session.tracker.status(begun) == "FINISHED"


def _note(folder: Path, parent: Run | None) -> RunNote:
    """Return the note of the experiment's MLflow run."""
    return RunNote(folder / f"run{'-' + parent.id if parent else ''}.json")


def _params(experiment: Experiment) -> dict[str, Any]:
    """Return the configuration as MLflow parameters.

    A stage that does not run has only its `method: none`; a pre-training omits the keys that its method does not use.
    """
    tree = experiment.model_dump(mode="json", exclude={"compare", "seeds", "sweep", "matrix"})
    method = experiment.pretrain.method
    if method == "none":
        tree["pretrain"] = {"method": "none"}
    else:
        tree["pretrain"] = {key: value for key, value in tree["pretrain"].items() if method_defaults.uses(method, key)}
    if experiment.adapt.method == "none":
        tree["adapt"] = {"method": "none"}
    return flatten(tree)
