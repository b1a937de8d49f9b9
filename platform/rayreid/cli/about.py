"""Commands on the installation: `version`."""

import typer

from rayreid import __version__

app = typer.Typer()


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
