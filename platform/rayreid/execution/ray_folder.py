"""The folder for a Ray's sockets and logs: private to its user, and with a path that is short enough for a socket."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rayreid.errors import UserError, escaped

_SOCKET_BYTES = 107  # the kernel's limit for the path of a Unix socket, without its final zero
_NAMED = len("/rr-00000000")
_WITHIN = len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_LONGEST = _SOCKET_BYTES - _NAMED - _WITHIN
_FALLBACK = Path("/tmp")
SESSIONS = "r"
"""Name of the folder within it that Ray gets. Ray lets every user write to the folder that it gets."""


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """Make a folder of mode 700 with one for Ray's temporary files (`SESSIONS`) in it, and remove both at the end.

    It is made in `RAY_TMPDIR` if that is set. Otherwise it is made in the folder for temporary files (`TMPDIR`), or in
    `/tmp` if the path of the former is too long for a socket.

    Raises:
        UserError: The folder cannot be made, or its path would be too long.
    """
    parent = _parent()
    try:
        made = tempfile.TemporaryDirectory(prefix="rr-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"Ray cannot be started here ({escaped(str(parent))}: {error.strerror}); set RAY_TMPDIR to a folder for "
            f"its sockets and logs, with a path of at most {_LONGEST} bytes"
        ) from None
    with made as name:
        (Path(name) / SESSIONS).mkdir()
        yield Path(name)


def _parent() -> Path:
    """Return the folder in which Ray's is made."""
    wished = os.environ.get("RAY_TMPDIR")
    if not wished:
        usual = Path(tempfile.gettempdir()).absolute()
        return usual if _short_enough(usual) else _FALLBACK
    parent = Path(wished).absolute()
    if not _short_enough(parent):
        raise UserError(
            f"RAY_TMPDIR={escaped(str(parent))}: this path has {len(os.fsencode(parent))} bytes, but Ray's sockets "
            f"allow {_LONGEST}; name a folder with a shorter path, such as {_FALLBACK}"
        )
    return parent


def _short_enough(parent: Path) -> bool:
    return len(os.fsencode(parent)) <= _LONGEST
