"""A check of an LMDB in a process of its own, because LMDB trusts its file: a damaged one can kill the reader.

This file is also the program that the child process runs; it then imports nothing of the package.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def fault_of(database: Path) -> str | None:
    """Walk through all keys of a database in a child process, and return what is wrong with it; None if it is sound.

    No value is read: it is only checked that each lies within the file.

    Args:
        database: A folder with `data.mdb`, or one file.
    """
    child = subprocess.run([sys.executable, __file__, str(database)], capture_output=True, check=False)
    if child.returncode < 0:
        return f"reading it ends in {signal.Signals(-child.returncode).name}"
    if child.returncode > 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"reading it ends with status {child.returncode}"
    return None


def cut_off(environment: Any, file: Path) -> str | None:
    """Return how much of a database's file there is, if it was most likely copied only in part; None if it is whole."""
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    # Reading beyond the end of a mapped file kills the process. A sound file may lack pages at its end that were
    # released before they were ever written, but only a few.
    size = file.stat().st_size
    return f"it is cut off: {size} of {expected} bytes" if size < 0.99 * expected else None


def _walk(database: Path) -> None:
    import lmdb

    file = database / "data.mdb" if database.is_dir() else database
    environment = lmdb.open(
        str(database), subdir=database.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
    )
    cut = cut_off(environment, file)
    if cut is not None:
        sys.exit(cut)
    with environment.begin(buffers=True) as transaction:
        _check_entries(transaction.cursor(), file)


def _check_entries(cursor: Any, file: Path) -> None:
    mapped = None
    before = b""  # no key is empty
    for key, value in cursor.iternext_nodup(keys=True, values=True):
        name = bytes(key)
        if name <= before:  # pages that form a circle lead here, too
            sys.exit(f"key {name!r} follows {before!r}")
        before = name
        if mapped is None:
            mapped = _mapped(file)
        address = _address(value) if len(value) else mapped.start
        if len(mapped) and (address not in mapped or address + len(value) > mapped.stop):
            sys.exit(f"the value of key {name!r} lies outside of the file")


def _address(value: memoryview) -> int:
    import numpy as np

    return np.frombuffer(value, np.uint8).__array_interface__["data"][0]


def _mapped(file: Path) -> range:
    """Return the addresses at which the file's bytes lie in this process.

    The range is empty where the system does not tell, such as one that is not Linux, or a file system whose inodes have
    other numbers there; keys alone are checked then.
    """
    status, maps = file.stat(), Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        span, _, offset, _, inode, *_ = line.split(maxsplit=5)
        if int(inode) == status.st_ino and int(offset, 16) == 0:
            start = int(span.split("-")[0], 16)
            return range(start, start + status.st_size)
    return range(0)


if __name__ == "__main__":
    try:
        _walk(Path(sys.argv[1]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
