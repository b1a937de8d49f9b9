"""A Ray that a command starts for itself: it listens on the loopback interface only, and requires a token of its own.

The token is made when that Ray starts, lies in a folder that only this user can read, and is deleted when it stops.
Ray's processes inherit the file's path through their environment and read the token from the file, so neither a command
line, an environment nor a log contains the token. Ray's sockets and logs lie in the same folder, so this Ray shares no
file with another one, of this user or of others.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayreid.execution.ray_folder import SESSIONS, ray_folder
from rayreid.execution.ray_internals import loopback_only, reread_authentication

_FOLDER = "RAYREID_PRIVATE_RAY"
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class PrivateRay:
    """The settings of a private Ray.

    Attributes:
        folder: Folder of Ray's sessions, which hold its sockets and logs.
        private: The folder around it, which only this user can enter.
        environment: Environment variables for the runtime environment of the job.
    """

    folder: Path
    private: Path
    environment: dict[str, str]


@contextlib.contextmanager
def private() -> Iterator[PrivateRay]:
    """Make the Ray that is started within a `with` block private, and stop requiring its token afterwards.

    Ray must have been shut down when the block ends. The user's own token and mode of authentication are for the user's
    clusters: they are put aside meanwhile.

    Raises:
        UserError: No folder for temporary files has a path that is short enough for Ray's sockets.
    """
    with ray_folder() as folder:
        token = write_token(folder)
        settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}
        with _environment(settings), loopback_only():
            yield PrivateRay(folder / SESSIONS, folder, {_FOLDER: str(folder), **_on_loopback()})


def write_token(folder: Path) -> Path:
    """Write a new token into a folder, as a file that only this user can read, and return its path."""
    token = folder / "token"
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(_TOKEN_BYTES))
    return token


def meeting_place() -> Path | None:
    """Return the private folder of this job's Ray, in which its workers can meet; None if Ray is not private."""
    import ray

    if not ray.is_initialized():
        return None
    folder = ray.get_runtime_context().runtime_env.get("env_vars", {}).get(_FOLDER)
    return Path(folder) if folder else None


def _on_loopback() -> dict[str, str]:
    """Return the settings that keep the connections between the workers of a training on the loopback interface."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}


@contextlib.contextmanager
def _environment(settings: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    reread_authentication()
    try:
        yield
    finally:
        _set(before)
        reread_authentication()


def _set(settings: dict[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
