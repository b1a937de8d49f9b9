"""Production of many artifacts: each once its inputs exist, as many at a time as the cluster can train."""

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from rayreid.config import Experiment
from rayreid.console import Screen
from rayreid.errors import one_line
from rayreid.execution.production import produce
from rayreid.pipeline.experiment_runner import Session, open_session
from rayreid.pipeline.ingestion import make_stores
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.tracking.outage import PATIENCE_SECONDS
from rayreid.tracking.run import Run


def produce_all(
    artifacts: Iterable[Artifact],
    slots: int,
    experiment: Experiment,
    session: Session,
    owner: Run,
    tags: Mapping[str, Any],
) -> dict[str, str]:
    """Make artifacts, each once; a failure affects only the artifacts that depend on it.

    With one slot the artifacts are made in this process, one after another, with its bars. With more slots they are
    made in Ray tasks that take no CPU of their own, because the work that they start asks Ray for its resources.

    Args:
        artifacts: The artifacts, inputs before those that use them.
        slots: How many artifacts to make at a time.
        experiment: The experiment, from which tasks open the tracking store.
        session: Output root, tracking store and screen of this process.
        owner: MLflow run that owns the runs of the stages.
        tags: MLflow tags of these runs.

    Returns:
        The reasons of failures, by artifact id.
    """
    waiting = {one.id: one for one in artifacts if not one.complete}
    running: dict[ray.ObjectRef[str | None], Artifact] = {}
    failed: dict[str, str] = {}
    # If a node is lost, Ray restarts its task, which resumes from what had been made.
    elsewhere = ray.remote(num_cpus=0, max_retries=experiment.resources.max_failures)(_produce)
    while waiting or running:
        for one in [one for one in waiting.values() if not _needs(one, waiting, running)]:
            reason = blocked(one, failed)
            if reason is not None:
                failed[waiting.pop(one.id).id] = reason
            elif slots == 1:
                del waiting[one.id]
                _note(failed, one, _attempt(one, owner, session.screen, tags))
            elif len(running) < slots:
                session.screen.say(f"[bold]▸ {one}[/]")
                running[elsewhere.remote(waiting.pop(one.id), experiment, owner.id, tags)] = one
        if running:
            for done in ray.wait(list(running))[0]:
                one = running.pop(done)
                _note(failed, one, _answer(one, done))
                session.screen.say(f"  [red]✗[/] {one}" if one.id in failed else f"  [green]✓[/] {one}")
    return failed


def refused_trials(
    trials: Mapping[str, Experiment],
    plans: Mapping[str, Mapping[str, Artifact]],
    session: Session,
    owner: Run,
    tags: Mapping[str, Any],
) -> dict[str, str]:
    """Ingest the datasets of the trials that have no result yet; return why trials cannot use theirs, by label.

    Args:
        trials: The trials by label.
        plans: The artifacts of the trials.
        session: Output root, tracking store and screen of this process.
        owner: MLflow run that owns the runs of the stages.
        tags: MLflow tags of these runs.
    """
    refused: dict[str, str] = {}
    for label, trial in trials.items():
        graph = plans[label]
        if graph["metrics"].complete:
            continue
        try:
            make_stores(graph.values(), {label: trial}, {label: graph}, owner, session.screen, tags)
        except Exception as error:
            refused[label] = one_line(error, "last")
    return refused


def blocked(artifact: Artifact, failed: Mapping[str, str]) -> str | None:
    """Return why failed artifacts prevent an artifact from being made; None if it depends on none of them."""
    causes = (identifier for identifier in lineage({"": artifact}) if identifier in failed)
    return next((failed[identifier] for identifier in causes), None)


def _needs(
    artifact: Artifact, waiting: Mapping[str, Artifact], running: "Mapping[ray.ObjectRef[str | None], Artifact]"
) -> bool:
    """Return whether an input or auxiliary input of an artifact is still to be made."""
    pending = {*waiting, *(one.id for one in running.values())}
    return bool(pending & lineage({**artifact.inputs, **artifact.auxiliary}).keys())


def _produce(artifact: Artifact, experiment: Experiment, owner: str, tags: Mapping[str, Any]) -> str | None:
    session = open_session(experiment, Screen(), PATIENCE_SECONDS)
    return _attempt(artifact, Run(session.tracker, owner), session.screen, tags)


def _answer(artifact: Artifact, done: "ray.ObjectRef[str | None]") -> str | None:
    """Return the answer of a task, or why it was lost after its last retry."""
    try:
        return ray.get(done)
    except RayError as error:
        return f"{artifact}: {one_line(error, 'last')}"


def _attempt(artifact: Artifact, owner: Run, screen: Screen, tags: Mapping[str, Any]) -> str | None:
    """Make an artifact; return the reason if that fails, whatever it is, so that the rest of a sweep can go on."""
    try:
        produce(artifact, owner, screen, tags)
    except Exception as error:
        return f"{artifact}: {one_line(error, 'last')}"
    return None


def _note(failed: dict[str, str], artifact: Artifact, reason: str | None) -> None:
    if reason is not None:
        failed[artifact.id] = reason
