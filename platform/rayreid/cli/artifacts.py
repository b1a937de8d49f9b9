"""Commands for the artifacts of an output root: `artifacts list`, `artifacts show`, `artifacts gc`."""

from typing import Annotated

import typer

from rayreid.cli.options import GROUP, Debug

app = typer.Typer(help="List, show and delete the artifacts of an output root (RAYREID_ROOT).", **GROUP)

AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.command("list")
def list_artifacts(as_json: AsJson = False, debug: Debug = False) -> None:
    """List all artifacts with their sizes and what uses them, the largest first."""
    from rayreid.console import Screen, json_of
    from rayreid.housekeeping.artifact_list import contents, show_list
    from rayreid.housekeeping.references import look

    inventory, known = look()
    if as_json:
        typer.echo(json_of(contents(inventory, known)))
    else:
        show_list(Screen(), inventory, known)


@app.command("show")
def show_artifact(
    name: Annotated[str, typer.Argument(metavar="ID", help="Artifact: its id, the beginning of it, or stage/id.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what an artifact was made of, by which command, commit and versions, its facts, files and users."""
    from rayreid.console import Screen, json_of
    from rayreid.housekeeping.artifact_list import content_of, find, show
    from rayreid.housekeeping.references import look

    inventory, known = look()
    found = find(inventory, name)
    if as_json:
        typer.echo(json_of(content_of(found, known)))
    else:
        show(Screen(), found, known)


@app.command("gc")
def collect_garbage(
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    debug: Debug = False,
) -> None:
    """Delete artifacts that no experiment, report, registered model or used artifact refers to; asks first."""
    from rayreid.console import Screen
    from rayreid.housekeeping.garbage import collect
    from rayreid.paths import output_root

    def agreed(question: str) -> bool:
        return yes or typer.confirm(question)

    collect(output_root(), Screen(), agreed, dry_run)
