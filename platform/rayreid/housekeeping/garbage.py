"""Deletion of the artifacts that nothing refers to any more."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.housekeeping.references import References, references
from rayreid.pipeline.forecast.standings import is_held
from rayreid.pipeline.forecast.wording import bytes_of
from rayreid.storage.contents import LEASE
from rayreid.storage.inventory import Inventory, Stored
from rayreid.storage.removal import delete_artifact


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
    free = [one for one in inventory.stored.values() if one.record is not None and one.id not in used]
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
    found = _look(root)
    for one in found.held:
        screen.say(f"[yellow]kept[/] {one}: a live process holds it")
    if not found.artifacts:
        screen.say(escape(f"{root}: something uses every artifact; there is nothing to delete"))
        return 0
    for one in found.artifacts:
        screen.say(f"{'would delete' if dry_run else 'to delete'}  {one}  {bytes_of(one.size)}")
    size = bytes_of(found.size)
    screen.say(f"{len(found.artifacts):,} artifacts, {size}, that no experiment, report or registered model uses")
    if dry_run or not confirm(f"Delete {len(found.artifacts):,} artifacts ({size})?"):
        return 0
    still = {one.id for one in _look(root).artifacts}  # the question may have waited for hours
    freed = 0
    for one in found.artifacts:
        if one.id in still and _delete(root, one):
            freed += one.size
            screen.say(f"[green]deleted[/] {one}")
        else:
            screen.say(f"[yellow]kept[/] {one}: something took it up meanwhile")
    screen.say(f"{bytes_of(freed)} freed")
    return freed


def _look(root: Path) -> Garbage:
    inventory = Inventory(root)
    return garbage_of(inventory, references(inventory))


def _delete(root: Path, stored: Stored) -> bool:
    folder = stored.folder
    if folder.parent.parent != root or folder.is_symlink() or folder.parent.is_symlink():
        return False  # never outside the output root
    try:
        return delete_artifact(folder, complete=True)
    except OSError as error:
        raise UserError(f"{folder}: it cannot be deleted ({error.strerror or error}); see its permissions") from None


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
