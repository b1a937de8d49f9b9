"""Moving aside what is damaged of an artifact, so that it can be made again."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from rayreid.files import check_guards, sync_folder
from rayreid.state_files import DAMAGED, aside_of
from rayreid.storage.contents import LEFT_BY_WRITERS, RECORD, DamagedError, Record, parsed, verify


def set_aside(folder: Path) -> Path:
    """Move what is damaged of an artifact to a folder beside it, which makes it incomplete; return that folder.

    Files whose checksums are right stay, so that its stage continues with them. If the record cannot be understood, or
    is that of another artifact, no file can be trusted, and all are moved. Call this only with the artifact's lease.
    """
    aside = aside_of(folder)
    try:
        own, moved = parsed(folder).id in ("", folder.name), verify(folder)
    except DamagedError:
        own, moved = False, []
    if not own:
        moved = [path.name for path in folder.iterdir() if path.name not in (RECORD, *LEFT_BY_WRITERS)]
        moved = [name for name in moved if not name.startswith(".")]  # such as the clocks of who waits for the lease
    # Last the record: until then, the artifact counts as damaged, and not as unfinished. After a loss of power, too: if
    # only the record were gone, the stage would take what is damaged for its own unfinished work.
    _move(moved, folder, aside)
    for place in {(folder / name).parent for name in moved}:
        sync_folder(place)
    _move([RECORD], folder, aside)
    return aside


def _move(names: Iterable[str], folder: Path, aside: Path) -> None:
    for name in names:
        check_guards(folder)  # reading all files may have taken longer than a lease lasts without its holder
        if (folder / name).exists():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(aside / name)


def records_set_aside(folder: Path) -> dict[Path, Record]:
    """Return the records of an artifact that `set_aside` moved, as far as they can be understood, by their folder."""
    found = {}
    for aside in sorted(folder.parent.glob(f"{folder.name}{DAMAGED}*")):
        with contextlib.suppress(DamagedError, FileNotFoundError):
            found[aside] = parsed(aside)
    return found
