"""Where outputs and datasets lie: the folders that the environment names, as absolute paths."""

import os
from pathlib import Path

from rayreid.errors import UserError


def inside_job() -> bool:
    """Whether this process runs inside a submitted Ray job, whose working directory is a passing copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def output_root() -> Path:
    """The outputs' root: `RAYREID_ROOT`, else `outputs` in the current folder.

    Raises:
        UserError: inside a submitted job it is not set, or is relative.
    """
    return _place("RAYREID_ROOT", os.environ.get("RAYREID_ROOT") or "outputs")


def data_path(root: str) -> Path:
    """A dataset's folder; a relative one is looked up under `RAYREID_DATA`, or else the current folder.

    Raises:
        UserError: inside a submitted job, a path that is relative in the end.
    """
    return _place("RAYREID_DATA", str(Path(os.environ.get("RAYREID_DATA", "")) / Path(root).expanduser()))


def _place(variable: str, value: str) -> Path:
    path = Path(value).expanduser()
    if inside_job() and not path.is_absolute():
        raise UserError(
            f"{value}: relative path inside a submitted job, whose folder is a passing copy; "
            f"set {variable} to an absolute path that all nodes see"
        )
    return path.absolute()
