"""Deletion of the artifacts that nothing refers to any more."""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from rayreid.console import Screen
from rayreid.errors import UserError, escaped
from rayreid.housekeeping.references import References, references
from rayreid.pipeline.forecast.standings import is_held
from rayreid.pipeline.forecast.wording import bytes_of
from rayreid.storage.contents import LEASE
from rayreid.storage.inventory import Inventory, Stored
from rayreid.storage.removal import put_back, take_aside


@dataclass(frozen=True)
class Garbage:
    """Artifacts that may be deleted.

    Attributes:
        artifacts: Complete artifacts that nothing uses, each before those that it needs.
        held: Artifacts that nothing uses, but which a live process holds, and all that these need.
    """

    artifacts: tuple[Stored, ...]
    held: tuple[Stored, ...] = ()

    @property
    def size(self) -> int:
        """Return their bytes."""
        return sum(one.size for one in self.artifacts)


def garbage_of(inventory: Inventory, known: References) -> Garbage:
    """Return the complete artifacts that no experiment, report, registered model or used artifact needs.

    Unfinished ones are never among them, nor what these need: `rayreid doctor` deletes unfinished artifacts on demand.

    Raises:
        UserError: It is not known what something refers to.
    """
    if known.unresolved:
        raise UserError(
            f"nothing is deleted while it is not known what something needs: {known.unresolved[0]}"
            f"{f' (and {len(known.unresolved) - 1} more)' if len(known.unresolved) > 1 else ''}"
        )
    used = _closure(known.others, known)
    free = [one for one in inventory.folders if one.record is not None and one.id not in used]
    held = _closure((one.id for one in free if is_held(one.folder / LEASE)), known)
    return Garbage(
        tuple(_users_first([one for one in free if one.id not in held], known)),
        tuple(one for one in free if one.id in held),
    )


def _closure(identifiers: Iterable[str], known: References) -> set[str]:
    """Return the ids of artifacts and of all that they need, directly or not."""
    found: set[str] = set()
    waiting = list(identifiers)
    while waiting:
        identifier = waiting.pop()
        if identifier not in found:
            found.add(identifier)
            waiting.extend(known.needs.get(identifier, ()))
    return found


def collect(
    root: Path,
    screen: Screen,
    confirm: Callable[[str], bool],
    dry_run: bool = False,
) -> int:
    """Delete the artifacts that nothing refers to, once the user has agreed; return the bytes that were freed.

    Args:
        root: The output root.
        screen: The screen to print to.
        confirm: Asks the user a question, and returns whether the answer is yes.
        dry_run: Only show what would be deleted.

    Raises:
        UserError: It is not known what something refers to, or an artifact cannot be deleted.
    """
    found, _ = _look(root)
    for one in found.held:
        screen.say(f"[yellow]kept[/] {one}: a live process holds it, or something that needs it")
    if not found.artifacts:
        screen.say(escape(f"{root}: something uses every artifact; there is nothing to delete"))
        return 0
    for one in found.artifacts:
        screen.say(f"{'would delete' if dry_run else 'to delete'}  {one}  {bytes_of(one.size)}")
    size = bytes_of(found.size)
    screen.say(f"{len(found.artifacts):,} artifacts, {size}, that no experiment, report or registered model uses")
    if dry_run or not confirm(f"Delete {len(found.artifacts):,} artifacts ({size})?"):
        return 0
    deletion = _Deletion(root, screen)
    try:
        for one in found.artifacts:
            deletion.take(one)
        deletion.give_back_what_is_used()
    except BaseException:
        deletion.give_back(deletion.taken)
        raise
    freed = deletion.finish()
    screen.say(f"{bytes_of(freed)} freed")
    return freed


class _Deletion:
    """Artifacts that are moved aside one by one, each after another look at what is used, and then deleted together.

    Deleting a large store takes minutes, and a run that begins meanwhile may need what has not been deleted yet.

    Args:
        root: The output root.
        screen: The screen to print to.

    Attributes:
        taken: The folders to which artifacts were moved, with these.
    """

    def __init__(self, root: Path, screen: Screen):
        self.root, self.screen = root, screen
        self.taken: dict[Path, Stored] = {}

    def take(self, one: Stored) -> None:
        """Move an artifact aside if nothing uses it.

        Raises:
            UserError: It is not known any more what something refers to, or the artifact cannot be moved.
        """
        still = {free.id for free in _look(self.root, self.taken.values())[0].artifacts}
        aside = _take_aside(self.root, one) if one.id in still else None
        if aside is None:
            self._kept(one)
        else:
            self.taken[aside] = one

    def give_back_what_is_used(self) -> None:
        """Put back what has come into use since it was moved aside.

        Raises:
            UserError: It is not known any more what something refers to.
        """
        used = _look(self.root, self.taken.values())[1]
        self.give_back({aside: one for aside, one in self.taken.items() if one.id in used})

    def give_back(self, taken: Mapping[Path, Stored]) -> None:
        """Put artifacts back, those that others need before these."""
        for aside, one in reversed(list(taken.items())):
            del self.taken[aside]
            self._kept(one)
            try:
                back = put_back(aside, one.folder)
            except (OSError, UserError):
                back = False
            if not back:
                self.screen.say(escape(f"{one} could not be put back; its files are in {aside}"))

    def finish(self) -> int:
        """Delete what is aside; return the bytes that were freed.

        Raises:
            UserError: A folder cannot be deleted.
        """
        for aside, one in self.taken.items():
            with _deleting(aside):
                shutil.rmtree(aside)
            self.screen.say(f"[green]deleted[/] {one}")
        return sum(one.size for one in self.taken.values())

    def _kept(self, one: Stored) -> None:
        self.screen.say(f"[yellow]kept[/] {one}: something took it up meanwhile")


def _look(root: Path, aside: Iterable[Stored] = ()) -> tuple[Garbage, set[str]]:
    """Return what may be deleted now, and the ids of what is used, also of artifacts that were moved aside."""
    inventory = Inventory(root)
    known = references(inventory, aside)
    return garbage_of(inventory, known), _closure(known.others, known)


def _take_aside(root: Path, stored: Stored) -> Path | None:
    folder = stored.folder
    if folder.parent.parent != root or folder.is_symlink() or folder.parent.is_symlink():
        return None  # never outside the output root
    with _deleting(folder):
        return take_aside(folder, complete=True)


@contextlib.contextmanager
def _deleting(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{escaped(str(folder))}: it cannot be deleted ({reason}); see its permissions") from None


def _users_first(artifacts: list[Stored], known: References) -> list[Stored]:
    """Return artifacts so that each comes before those that it needs."""
    left = {one.id: one for one in artifacts}
    order: list[Stored] = []

    def visit(one: Stored) -> None:
        if left.pop(one.id, None) is None:
            return
        for identifier in known.needs.get(one.id, ()):
            if identifier in left:
                visit(left[identifier])
        order.append(one)

    for one in artifacts:
        visit(one)
    return order[::-1]
