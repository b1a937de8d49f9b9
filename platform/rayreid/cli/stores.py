"""The command on an image store: `inspect`."""

from typing import Annotated

import typer

from rayreid.cli.options import Debug

app = typer.Typer()


@app.command("inspect")
def inspect_store(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of an image store, e.g. outputs/ingest/<id>.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare all shards with their checksums.")] = False,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", metavar="FILE", help="Draw a contact sheet of its images, e.g. sheet.png."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what an image store holds: images, rejects, splits, identities, sizes, shards."""
    from rayreid.diagnostics.inspect_store import inspect_store as show

    show(store, verify=verify, sheet=sheet)
