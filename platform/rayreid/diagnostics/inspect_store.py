"""Inspection of an image store: its statistics, the integrity of its shards, a sheet of images. Needs no Ray."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from rayreid.console import Screen
from rayreid.data.store.inspection import Spread, Summary, captions, sample_images, summarise
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError

_SHEET = 48
_NAMES = 12  # columns for the names on the left
_UNKNOWN = "not known"


def inspect_store(directory: str, verify: bool = False, sheet: str | None = None, screen: Screen | None = None) -> None:
    """Print the statistics of a store and, if asked for, verify it or draw some of its images.

    Args:
        directory: The store's folder; a relative path begins at the current folder.
        verify: Read all shards and compare them with their checksums.
        sheet: The image file to draw.
        screen: Prints the results.

    Raises:
        UserError: The store is not complete, a shard is missing or (if verified) has changed, or the sheet cannot
            be drawn.
    """
    if sheet is not None and not Path(sheet).absolute().parent.is_dir():  # report it now, not after a long verification
        raise UserError(f"--sheet {sheet}: there is no folder {Path(sheet).parent}; make it first")
    screen = screen or Screen()
    store = ImageStore(directory)
    summary = summarise(store)
    _show(screen, store, summary)
    if summary.missing:
        raise UserError(
            f"{summary.missing[0]}: the shard is missing ({len(summary.missing)} of {summary.shards} are);"
            " copy it again or run the ingest again"
        )
    if verify:
        with screen.bar("comparing shards", summary.shards) as bar:
            store.verify(bar.to)
        screen.say(f"all {summary.shards} shards match their checksums")
    if sheet is not None:
        _draw(store, Path(sheet))
        screen.say(f"drawn: {escape(sheet)}")


def _show(screen: Screen, store: ImageStore, summary: Summary) -> None:
    lines = {
        "store": store.directory,
        "dataset": f"{summary.dataset} {summary.version}".strip(),
        "fingerprint": summary.fingerprint,
        "images": f"{summary.read:,} read = {summary.stored:,} stored + {sum(summary.rejected.values()):,} rejected",
        "rejected": _reasons(store, summary),
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in summary.left_out.items()),
        "cameras": f"{summary.cameras:,}" if summary.cameras else _UNKNOWN,
        "shards": f"{summary.shards:,}, {_size(summary.shard_bytes)} on disk",
        "heights": _lengths(summary.heights),
        "widths": _lengths(summary.widths),
    }
    screen.facts(lines, _NAMES)
    screen.say("")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("split", min_width=_NAMES - 1)
    for name in ("images", "identities"):
        table.add_column(name, justify="right")
    for split, count in summary.counts.items():
        known = summary.identities[split]
        table.add_row(escape(split), f"{count:,}", f"{known:,}" if known else _UNKNOWN)
    screen.console.print(table)


def _reasons(store: ImageStore, summary: Summary) -> str:
    """Format the number of rejected images by reason, and where they are listed; "" if there are none."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.rejected.items())
    return reasons and f"{reasons} (listed in {store.directory / 'rejected.parquet'})"


def _lengths(spread: Spread) -> str:
    if spread.least == spread.greatest:
        return f"all {spread.least} pixels"
    return f"{spread.least} to {spread.greatest} pixels, median {spread.median:g}"


def _size(count: int) -> str:
    """Format bytes in the largest binary unit that gives at least 1."""
    amount, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:,.0f} {units[0]}" if units[0] == "bytes" else f"{amount:,.1f} {units[0]}"


def _draw(store: ImageStore, path: Path) -> None:
    from rayreid.evaluation.canvas import save_picture  # matplotlib loads slowly: import it only to draw
    from rayreid.evaluation.image_sheets import image_sheet

    rows, images = sample_images(store, _SHEET)
    if not images:
        raise UserError(f"{store.directory}: none of the images to be drawn can be decoded")
    titles = captions(store, rows)
    figure = image_sheet(images, titles if any(titles) else None)
    save_picture(figure, path, "--sheet")
