"""Commands for the installation: `doctor`, `version`."""

import typer

from rayreid import __version__
from rayreid.cli.options import Debug

app = typer.Typer()


@app.command()
def doctor(debug: Debug = False) -> None:
    """Check versions, storage, MLflow, Ray and its nodes, and say how to fix problems; exit status 0 or 1."""
    from rayreid.diagnostics.doctor import doctor as look

    raise typer.Exit(0 if look() else 1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
