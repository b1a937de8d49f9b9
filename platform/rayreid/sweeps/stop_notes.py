"""Notes about the trials of a sweep that were stopped early, in `stopped/` of its folder: these are not run again."""

import contextlib
import json
from pathlib import Path

from rayreid import forms
from rayreid.config import Experiment
from rayreid.files import make_folder, write_atomically
from rayreid.pipeline.experiment_folder import digest_of, path_of
from rayreid.state_files import DamagedFileError, read_json

_NOTE = forms.record({"label": forms.text, "why": forms.text})


def note_paths(root: Path, experiment: Experiment) -> list[Path]:
    """Return the files of the notes; nothing is created."""
    return sorted(_folder(root, experiment).glob("*.json"))


def read_note(path: Path) -> dict[str, str]:
    """Return the label of a trial, and why it was stopped.

    Raises:
        DamagedFileError: The file is no such note.
    """
    return dict(read_json(path, _NOTE))


def write_note(root: Path, experiment: Experiment, one: Experiment, label: str, why: str) -> None:
    """Record that a trial was stopped early.

    Args:
        root: The output root.
        experiment: The experiment with the sweep.
        one: The experiment of the trial.
        label: The trial's label.
        why: Why it was stopped.
    """
    folder = _folder(root, experiment)
    make_folder(folder)
    write_atomically(folder / f"{digest_of(one)}.json", json.dumps({"label": label, "why": why}))


def stopped_trials(root: Path, experiment: Experiment) -> set[str]:
    """Return the labels of the trials that were stopped early; nothing is written.

    A damaged note does not count, because a run moves it aside and runs its trial again.
    """
    labels = set()
    for path in note_paths(root, experiment):
        with contextlib.suppress(DamagedFileError):
            labels.add(read_note(path)["label"])
    return labels


def _folder(root: Path, experiment: Experiment) -> Path:
    return path_of(root, experiment) / "stopped"
