"""The file that names an MLflow run, for the process that resumes after an interruption."""

import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from rayreid import forms
from rayreid.files import sync_folder, write_atomically
from rayreid.state_files import if_whole, read_json

_ID = forms.matching(r"[0-9A-Za-z_-]{1,64}")  # an id is also the name of a folder
NOTE_FORM = forms.record({"run": forms.or_none(_ID)}, {"mark": _ID})


class RunNote:
    """A note of the run that an experiment or a stage began.

    It holds a mark while the run is created, and afterwards the run's id: the run carries the mark as a tag, so that a
    process that is killed in between leaves a run that is found again.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> str | None:
        """Return the id of the run; None if none was begun, or if the note is damaged, which is then moved aside."""
        run = self._content().get("run")
        return None if run is None else str(run)

    def mark(self) -> tuple[str, bool]:
        """Return the mark of the run to create, and whether an earlier process may have created a run with it."""
        left = self._content().get("mark")
        if left is not None:
            return str(left), True
        mark = uuid.uuid4().hex
        write_atomically(self.path, json.dumps({"run": None, "mark": mark}))
        sync_folder(self.path.parent)
        return mark, False

    def write(self, run_id: str) -> None:
        """Write the id of a run, once it has all that a resumed run is not given again."""
        write_atomically(self.path, json.dumps({"run": run_id}))

    def _content(self) -> dict[str, Any]:
        return if_whole(self.path, partial(read_json, self.path, NOTE_FORM), "a new MLflow run is begun") or {}
