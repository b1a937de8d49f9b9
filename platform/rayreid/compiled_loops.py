"""Loops compiled by Numba, cached on disk wherever this user can write."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config

_settings: Any = numba_config  # its variables are made when it is imported, which type checkers do not see


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function with Numba at its first call and caches the code on disk.

    The compiled function releases the interpreter lock. Numba keeps its cache beside the source, under the user's home,
    or where `NUMBA_CACHE_DIR` says. Where none of these can be written (a read-only installation, a user without a
    home), the cache goes to a temporary folder, which is logged once; without one, the function is compiled in every
    process.

    Args:
        options: Further options of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
        folder = _private_folder()
        if folder is None:
            return numba.njit(nogil=True, **options)(function)
        logging.getLogger("rayreid").warning(
            "compiled code is cached in %s: neither the installation nor the user's cache folder can be written; "
            "NUMBA_CACHE_DIR sets another place",
            folder,
        )
        os.environ["NUMBA_CACHE_DIR"] = str(folder)  # also for the processes that this one starts
        _settings.CACHE_DIR = str(folder)
        return numba.njit(nogil=True, cache=True, **options)(function)

    return decorate


def _private_folder() -> Path | None:
    """Return a temporary folder that only this user can write, because the cache holds code; None if there is none."""
    try:
        folder = Path(tempfile.gettempdir()) / f"rayreid-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="rayreid-numba-"))
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return folder
