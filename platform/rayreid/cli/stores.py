"""The command for an image store: `inspect`."""

from typing import Annotated

import typer

from rayreid.cli.options import Debug

app = typer.Typer()


@app.command("inspect")
def inspect_store(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of an image store, e.g. outputs/ingest/<id>.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check all shards against their checksums.")] = False,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", metavar="FILE", help="Draw a contact sheet of sample images, e.g. sheet.png."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the content of an image store: images, rejected files, splits, identities, sizes, shards."""
    from rayreid.diagnostics.inspect_store import inspect_store as show

    show(store, verify=verify, sheet=sheet)
