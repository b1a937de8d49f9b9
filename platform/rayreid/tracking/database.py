"""The SQLite database of the default tracking store: its URI, and the places of artifacts that it records.

MLflow stores absolute places. After the output root was moved, it would write to the old one and find nothing there.
"""

import contextlib
import json
import os
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from rayreid.errors import UserError
from rayreid.files import write_atomically
from rayreid.storage.lease import Lease
from rayreid.tracking.outbox import Outbox

SQLITE = "sqlite:///"
ARTIFACTS = "mlartifacts"
"""Folder of MLflow's artifacts in the output root."""
LOCK = ".mlflow-lease.json"
"""Lock file in the output root, held while the database is created or changed as a whole."""
_DATABASE = "mlflow.db"

_RECORDED = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns in which MLflow records places of artifacts, by table."""


def default_uri(root: Path) -> str:
    """Return the URI of the database in an output root.

    Raises:
        UserError: The root has a name with which no URI can name the database.
    """
    path = str(root / _DATABASE)
    if not set(path) & set("%?"):
        return f"{SQLITE}{path}"
    from sqlalchemy.engine import make_url

    # SQLAlchemy decodes the path of a database from version 2.1 on.
    for escaped in (path.replace("%", "%25").replace("?", "%3F"), path):
        if make_url(f"{SQLITE}{escaped}").database == path:
            return f"{SQLITE}{escaped}"
    raise UserError(
        f"{root}: MLflow cannot open a database in a folder of this name; set RAYREID_ROOT to one of letters and "
        "digits, or MLFLOW_TRACKING_URI to a server"
    )


def file_of(uri: str) -> Path | None:
    """Return the file of a SQLite database; None if the URI names a store of another kind."""
    if not uri.startswith(SQLITE):
        return None
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


def remove_stray_folder(uri: str) -> None:
    """Remove the empty folder that MLflow makes for a database whose URI is escaped: it takes the URI for the path."""
    file, literal = file_of(uri), Path(uri.removeprefix(SQLITE))
    if file is None or file == literal:
        return
    with contextlib.suppress(OSError):  # up to the first folder that is not empty
        for stray in literal.parents:
            stray.rmdir()


def artifact_location(root: Path) -> str:
    """Return the URI of the folder of MLflow's artifacts in an output root."""
    return (root / ARTIFACTS).as_uri()


def check_moved(root: Path, experiment: str) -> None:
    """Refuse a database that would put artifacts elsewhere than into its output root.

    Args:
        root: The output root whose database is opened.
        experiment: Name of the MLflow experiment that is opened.

    Raises:
        UserError: The output root was moved or copied since an experiment was created.
    """
    for name, location in _locations(root):
        other = _elsewhere(location, root)
        if other is not None and (name == experiment or not other.exists()):
            raise UserError(
                f"{root}: MLflow would write artifacts to {other}, where these outputs were before they were moved; "
                f"run RAYREID_ROOT={shlex.quote(str(root))} rayreid doctor --fix-locations, or move them back"
            )


def fix_locations(root: Path) -> dict[Path, int]:
    """Let the database of a moved output root record its present place; return the number of changes by old place.

    No other command may use the root meanwhile. Entries that wait for delivery are changed, too.
    """
    old = {location: other for _, location in _locations(root) if (other := _elsewhere(location, root)) is not None}
    changed = {}
    for location, other in old.items():
        with (
            Lease(root / LOCK),
            contextlib.closing(sqlite3.connect(root / _DATABASE)) as connection,
            connection,
        ):
            changed[other] = sum(
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? "
                    f"OR substr({column}, 1, ?) = ?",  # LIKE would ignore case
                    (artifact_location(root), len(location) + 1, location, len(location) + 1, f"{location}/"),
                ).rowcount
                for table, column in _columns(connection)
            )
        _redirect_undelivered(root, other.parent)
    return changed


def _locations(root: Path) -> list[tuple[str, str]]:
    """Return (name, artifact location) of each experiment in the database; none if it does not exist yet."""
    path = root / _DATABASE
    if not path.is_file():
        return []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        except sqlite3.Error:  # MLflow has not made its tables yet, or reports what is wrong when it opens them
            return []


def _elsewhere(location: str, root: Path) -> Path | None:
    """Return the folder of an artifact location in another output root; None if it is in this one, or a user's own."""
    parsed = urlparse(location)
    folder = Path(unquote(parsed.path))
    if parsed.scheme != "file" or folder.name != ARTIFACTS or location == artifact_location(root):
        return None
    with contextlib.suppress(OSError):
        if os.path.samestat(folder.parent.stat(), root.stat()):  # the same folder under another name
            return None
    return folder


def _columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Yield the (table, column) pairs of `_RECORDED` that this version of MLflow has."""
    for table, columns in _RECORDED.items():
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        yield from ((table, column) for column in columns if column in present)


def _redirect_undelivered(root: Path, old: Path) -> None:
    """Change the old root to the new one in entries that wait for delivery: they name journals and files."""
    pairs = [(default_uri(old), default_uri(root)), (str(old), str(root))]
    waiting = [entry.path for box in (root / "undelivered").glob("*/") for entry in Outbox(box).entries()]
    for entry in waiting:
        text = entry.read_text(encoding="utf-8")
        changed = text
        for before, after in pairs:
            changed = changed.replace(json.dumps(before), json.dumps(after))
            changed = changed.replace(json.dumps(f"{before}/")[:-1], json.dumps(f"{after}/")[:-1])
        if changed != text:
            write_atomically(entry, changed)
