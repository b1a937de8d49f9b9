"""Absolute paths of the folders for outputs, datasets and copies of shards, which environment variables can set."""

import os
from pathlib import Path

from rayreid.errors import UserError


def inside_job() -> bool:
    """Return whether this process runs inside a submitted Ray job, whose working directory is a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def output_root() -> Path:
    """Return the output root: `RAYREID_ROOT`, or else `outputs` in the current folder.

    Raises:
        UserError: Inside a submitted job, `RAYREID_ROOT` is unset or relative; or its name is not UTF-8.
    """
    root = _place("RAYREID_ROOT", os.environ.get("RAYREID_ROOT") or "outputs")
    # SQLite and Arrow take names for UTF-8, whatever the locale says, and would write to another folder.
    if os.fsencode(root) != str(root).encode(errors="surrogatepass"):
        raise UserError(
            f"{root}: the name of this folder is not UTF-8 as this locale reads it; set PYTHONUTF8=1, or RAYREID_ROOT "
            "to a folder of another name"
        )
    return root


def use_output_root(folder: str) -> None:
    """Make a folder the output root of this process and of those that it starts, in place of `RAYREID_ROOT`.

    Raises:
        UserError: The name is empty, as that of a variable that is not set.
    """
    if not folder.strip():
        raise UserError("--root is empty; name the folder for the outputs, or leave the option out")
    os.environ["RAYREID_ROOT"] = str(expanded(folder).absolute())


def data_path(root: str) -> Path:
    """Return a dataset's folder; a relative path is looked up under `RAYREID_DATA`, or else in the current folder.

    Raises:
        UserError: Inside a submitted job, the resulting path is relative.
    """
    return _place("RAYREID_DATA", str(Path(os.environ.get("RAYREID_DATA", "")) / expanded(root)))


def expanded(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~user` replaced by the home folder.

    Raises:
        UserError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no home folder {Path(path).parts[0]} here; write the whole path") from None


def cache_folder() -> Path | None:
    """Return the folder for copies of shards on a node's own disk, `RAYREID_CACHE`; None if the variable is not set.

    Raises:
        UserError: It is a URI, or begins with the home folder of somebody who has none here; or it is relative, inside
            a submitted job.
    """
    named = os.environ.get("RAYREID_CACHE")
    if not named:
        return None
    if "://" in named:
        raise UserError(f"RAYREID_CACHE={named}: not a path; name a folder on a disk of each node")
    return _place("RAYREID_CACHE", named, "on a disk of each node")


def _place(variable: str, value: str, where: str = "that all nodes see") -> Path:
    path = expanded(value)
    if inside_job() and not path.is_absolute():
        raise UserError(
            f"{value}: relative path inside a submitted job, whose folder is a passing copy; "
            f"set {variable} to an absolute path {where}"
        )
    return path.absolute()
