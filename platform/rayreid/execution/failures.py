"""Failures of a training: what a worker writes to the disk about an error that would recur, and the driver raises."""

import contextlib
import json
from pathlib import Path

from ray.train import TrainingFailedError

from rayreid import forms
from rayreid.disk_faults import FULL, StorageError, as_storage_error
from rayreid.errors import StoppedEarly, UserError
from rayreid.files import write_atomically
from rayreid.state_files import AGAIN, read_json
from rayreid.training import parallel
from rayreid.training.guard import NonFiniteLossError

_FAILURE = "failure-{}.json"
_CONTENT = forms.record({"message": forms.text, "hopeless": forms.boolean})


def note_failure(folder: Path, error: UserError | NonFiniteLossError) -> None:
    """Write the error's message to a file for the driver.

    Often the error occurs only on this worker, which has the bad image, while the others wait for its gradients. When
    the error is raised, Ray stops the others, so the message must be on disk before that.
    """
    path = folder / _FAILURE.format(parallel.rank())
    where = f"; all {len(error.keys)} keys: {path}" if isinstance(error, NonFiniteLossError) else ""
    content = {"message": f"{error}{where}", "keys": getattr(error, "keys", [])}
    content["hopeless"] = isinstance(error, StoppedEarly)
    try:
        write_atomically(path, json.dumps(content))
    except OSError:  # not even this fits on the disk; an empty file, which takes no room, still prevents a restart
        with contextlib.suppress(OSError):
            path.touch()


def noted_failures(folder: Path) -> list[Path]:
    """Return the files in which workers of this training reported why it cannot continue."""
    return sorted(path for path in folder.glob(_FAILURE.format("*")) if path.is_file())


def raise_failure(folder: Path) -> None:
    """Raise the error that a worker of this training wrote down, if there is one.

    Raises:
        UserError: The user can fix the cause, or a loss was not finite.
        StoppedEarly: The training was stopped as unpromising.
        StorageError: The disk was so full that not even the reason fits.
    """
    for path in noted_failures(folder):
        if not path.stat().st_size:
            raise StorageError(f"{folder}: {FULL.format(reason='a worker could not even write why it stopped')}")
        content = read_json(path, _CONTENT, f"a worker has stopped for a reason that is lost; {AGAIN}")
        raise (StoppedEarly if content["hopeless"] else UserError)(content["message"])


def raise_refusal(folder: Path, error: TrainingFailedError) -> None:
    """Explain a failure of Ray Train's own that the storage caused: it keeps records in the artifact's folder."""
    failures = [getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    for failure in filter(None, failures):
        refused = as_storage_error(failure, folder)
        if refused is not None:
            raise refused from error
