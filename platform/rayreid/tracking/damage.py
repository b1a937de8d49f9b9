"""Damage to the tracking store's database: recognising it, and what to do."""

import contextlib
import re
import shlex
import sqlite3
from pathlib import Path

from rayreid.errors import UserError, escaped
from rayreid.tracking.database import ARTIFACTS, file_of

_SAYS = re.compile(
    r"database disk image is malformed|malformed database schema|file is not a database|file is encrypted"
    r"|unsupported file format|database corruption|no such table: \w+|no such column: [\w.]+|has no column named \w+"
)
"""What SQLite says of a damaged database; MLflow passes it on, and so does a server of its own."""
_WHOLE: dict[str, tuple[int, ...] | None] = {}
"""The state in which a database was found whole: it is not examined again at the next refusal in the same state."""
_TABLES = {
    "alembic_version",
    "datasets",
    "experiment_tags",
    "experiments",
    "input_tags",
    "inputs",
    "latest_metrics",
    "metrics",
    "params",
    "runs",
    "tags",
}
"""Tables that every database has since MLflow 2.4. If one is missing, MLflow would make it anew in an old form."""


def damage_of(error: BaseException, uri: str) -> str | None:
    """Return which database is damaged, and how, if that is what an error of MLflow means; None if not.

    Of a refusal by a database of one's own, the text alone does not say whether damage is the reason: a run may not be
    found because its page was lost. So the database is examined.

    Args:
        error: The error.
        uri: URI of the tracking store.
    """
    code = getattr(error, "error_code", None)  # MLflow's own errors carry one
    found = _SAYS.search(str(error))
    if code is None and not type(error).__module__.startswith(("sqlalchemy", "sqlite3")):
        return None
    if found is not None:
        return _damaged(uri, found[0])
    if code in (None, "TEMPORARILY_UNAVAILABLE"):
        return None
    state = _state_of(uri)
    if state is not None and _WHOLE.get(uri) == state:
        return None
    wrong = damage_at(uri)
    if wrong is None:
        _WHOLE[uri] = state
    return wrong


def _state_of(uri: str) -> tuple[int, ...] | None:
    """Return what changes whenever a database is written; None if it cannot be looked at."""
    file = file_of(uri)
    with contextlib.suppress(OSError):
        if file is not None:
            known = file.stat()
            return known.st_mtime_ns, known.st_size, known.st_ino
    return None


def damage_at(uri: str) -> str | None:
    """Return which database is damaged, and how, after examining all of it; None if nothing is found.

    Args:
        uri: URI of the tracking store; the database of a server is not examined.
    """
    file = file_of(uri)
    wrong = examined(file, whole=True) if file is not None and file.is_file() else None
    if wrong is None and file is not None and file.is_file() and not file.stat().st_size:
        wrong = "it is empty"
    return None if wrong is None else _damaged(uri, wrong)


def check_whole(uri: str, root: Path | None = None) -> None:
    """Refuse a damaged SQLite database before MLflow opens it: MLflow would try for minutes, or fill in empty tables.

    Args:
        uri: URI of the tracking store.
        root: The output root, if the database is that of its runs.

    Raises:
        UserError: The database is damaged, or it is empty although runs were recorded in it.
    """
    file = file_of(uri)
    if file is None or not file.is_file():
        return
    wrong = examined(file)
    if wrong is None and root is not None and not file.stat().st_size and _was_used(root):
        wrong = "it is empty, but runs were recorded in it"
    if wrong is not None:
        raise UserError(
            f"{_damaged(uri, wrong)}: {remedy(uri)}, or move it away to begin a new history, and run the same command "
            "again"
        )


def examined(file: Path, whole: bool = False) -> str | None:
    """Return what is wrong with a SQLite database of MLflow's; None if nothing is found, or if it is empty.

    Args:
        file: The database.
        whole: Whether to examine all its pages, too, which takes a second for each few hundred MB.
    """
    try:
        opened = sqlite3.connect(file)
    except sqlite3.OperationalError:  # it may not be read: that is no damage, and MLflow says so
        return None
    with contextlib.closing(opened) as connection:
        try:
            connection.execute("PRAGMA busy_timeout = 5000")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if whole:
                (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if answer != "ok":
                    return " ".join(answer.split())[:100]
        except sqlite3.DatabaseError as error:
            found = _SAYS.search(str(error))
            return found and found[0]
    missing = sorted(_TABLES - tables)
    # While MLflow fills a new database, and before it brings an old one up to date, some are not there yet.
    return f"no such table: {missing[0]}" if "alembic_version" in tables and missing else None


def forget_connections(uri: str) -> None:
    """Let MLflow open a database anew: the one that is restored is another file, and an open one would be written."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.get(uri)
    if engine is not None:
        engine.dispose()


def remedy(uri: str) -> str:
    """Return what to do about the damaged database of a tracking store."""
    file = file_of(uri)
    if file is None:
        return "restore the server's database"
    return f"restore it from a copy, or recover it by sqlite3 {shlex.quote(str(file))} .recover"


def _damaged(uri: str, wrong: str) -> str:
    file = file_of(uri)
    where = f"the database of MLflow at {uri}" if file is None else escaped(str(file))
    return f"{where}: this database of MLflow's is damaged ({wrong})" if file else f"{where} is damaged ({wrong})"


def _was_used(root: Path) -> bool:
    """Return whether runs of an output root were logged, or are to be."""
    return any((root / ARTIFACTS).glob("*/*")) or any((root / "undelivered").glob("*/*.json"))
