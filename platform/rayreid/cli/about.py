"""Commands for the installation: `doctor`, `version`."""

from typing import Annotated

import typer

from rayreid import __version__
from rayreid.cli.options import Debug

app = typer.Typer()


@app.command()
def doctor(
    fix_locations: Annotated[
        bool,
        typer.Option(
            "--fix-locations", help="First let the MLflow database of moved outputs (RAYREID_ROOT) record their place."
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Clear up what interrupted or damaged runs left in the output root, as far as it is safe."
        ),
    ] = False,
    discard: Annotated[
        list[str] | None,
        typer.Option(
            "--discard",
            metavar="KIND",
            help="With --repair, also delete `unfinished` artifacts, or `damaged` files that were moved aside.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare all artifacts under RAYREID_ROOT with their checksums.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check versions, storage, MLflow, Ray and its nodes, and say how to fix problems; exit status 0 or 1."""
    from rayreid.diagnostics.doctor import doctor as look
    from rayreid.diagnostics.doctor import fix_locations as fix

    if fix_locations:
        fix()
    raise typer.Exit(0 if look(verify=verify, repair=repair, discard=discard or ()) else 1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
