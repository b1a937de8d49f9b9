"""The command that shows what a run would do and cost: `plan`, also `run --dry-run`."""

from typing import TYPE_CHECKING, Annotated

import typer

from rayreid.cli.options import Debug, File, Overrides, experiment_of

if TYPE_CHECKING:
    from rayreid.config import Experiment

app = typer.Typer()

_MOST = 1e12
"""Largest price of a GPU-hour; a product with a number near the largest one would not be a number of JSON."""

Price = Annotated[
    float | None,
    typer.Option("--price-per-gpu-hour", metavar="PRICE", help="Also show what the GPU-hours cost, in its currency."),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", metavar="N", help="GPUs to plan for (default: those that are visible here).")
]
Cpus = Annotated[
    int | None, typer.Option("--cpus", metavar="N", help="CPU cores to plan for (default: those of this machine).")
]


@app.command()
def plan(
    file: File,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print its graph as a Mermaid flowchart.")] = False,
    price: Price = None,
    gpus: Gpus = None,
    cpus: Cpus = None,
    debug: Debug = False,
) -> None:
    """Show what `run` would reuse, resume and make, why, and what it would cost; starts no Ray and writes nothing."""
    show_plan(experiment_of(file, overrides), as_json, as_mermaid, price, gpus, cpus)


def show_plan(
    experiment: "Experiment",
    as_json: bool = False,
    as_mermaid: bool = False,
    price: float | None = None,
    gpus: int | None = None,
    cpus: int | None = None,
) -> None:
    """Print the plan of an experiment: as a tree, or as JSON or Mermaid.

    Raises:
        UserError: Two forms are asked for, the price is not in its range, or nothing can be planned.
    """
    from rayreid.console import Screen, json_of
    from rayreid.errors import UserError
    from rayreid.pipeline.forecast.mermaid import mermaid_of
    from rayreid.pipeline.forecast.tree import content_of, show
    from rayreid.sweeps.sweep_forecast import forecast_of

    if as_json and as_mermaid:
        raise UserError("--json and --mermaid: choose one")
    if price is not None and not 0 <= price <= _MOST:
        raise UserError(f"--price-per-gpu-hour {price:g}: give 0 to {_MOST:g}")
    found = forecast_of(experiment, gpus, cpus)
    if as_json:
        typer.echo(json_of(content_of(found, price)))
    elif as_mermaid:
        typer.echo(mermaid_of(found), nl=False)
    else:
        show(Screen(), found, price)
