"""Arguments and options that several commands share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rayreid.config import Experiment


@dataclass
class ErrorDisplay:
    """How an error of the command is shown; Click hands it to the command as its context's object.

    Attributes:
        traceback: Whether with its traceback.
    """

    traceback: bool = False


def _set_traceback(context: typer.Context, debug: bool) -> bool:
    context.ensure_object(ErrorDisplay).traceback = debug
    return debug


GROUP: dict[str, Any] = {
    "no_args_is_help": True,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Settings for a group of commands."""

File = Annotated[str, typer.Argument(metavar="FILE", help="Experiment file, e.g. experiments/demo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides of keys in FILE, e.g. select.fraction=0.25", show_default=False
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_traceback, help="Show the full traceback if the command fails.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict", help="Whether all tensors of the weights must fit; otherwise those that fit are loaded."
    ),
]


def experiment_of(file: str, overrides: Sequence[str] | None) -> "Experiment":
    """Return the experiment that a command names; the configuration is imported only now: help stays quick."""
    from rayreid.config.loading import load_experiment

    return load_experiment(file, overrides or ())
