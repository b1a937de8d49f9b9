"""The file that names an MLflow run, for the process that resumes after an interruption."""

import json
from functools import partial
from pathlib import Path

from rayreid import forms
from rayreid.files import write_atomically
from rayreid.state_files import if_whole, read_json

NOTE_FORM = forms.record({"run": forms.matching(r"[0-9A-Za-z_-]{1,64}")})  # an id is also the name of a folder


class RunNote:
    """A note of the run that an experiment or a stage began.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> str | None:
        """Return the id of the run; None if none was begun, or if the note is damaged, which is then moved aside."""
        found = if_whole(self.path, partial(read_json, self.path, NOTE_FORM), "a new MLflow run is begun")
        return None if found is None else str(found["run"])

    def write(self, run_id: str) -> None:
        """Write the id of a run."""
        write_atomically(self.path, json.dumps({"run": run_id}))
