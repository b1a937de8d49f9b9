"""The command line: `rayreid run FILE`, one command per stage, and what goes with them.

Every module here holds the commands on one kind of thing. Stages are imported when a command runs: help stays quick.
"""

import sys

import typer

from rayreid.cli import about, experiments, retrieval, stores, weights
from rayreid.cli.interrupts import answering_interrupts
from rayreid.cli.options import GROUP
from rayreid.errors import UserError

app = typer.Typer(
    help="Pre-training for person re-identification on Ray: which crops, which stem, and what it buys on your target.",
    add_completion=False,
    pretty_exceptions_enable=False,
    **GROUP,
)
app.add_typer(experiments.app)
app.add_typer(retrieval.app)
app.add_typer(stores.app)
app.add_typer(weights.app, name="weights")
app.add_typer(about.app)


_INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `rayreid` and of the jobs: errors the user can mend are one line, exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with answering_interrupts():
            app(arguments, standalone_mode=True)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("rayreid: interrupted; the same command goes on from here", file=sys.stderr)
        raise
    except Exception as error:
        # An error in a Ray task arrives wrapped, its text being the remote traceback.
        cause = getattr(error, "cause", None) or error
        if "--debug" in arguments or not isinstance(cause, UserError):
            raise
        print(f"rayreid: {cause}", file=sys.stderr)
        sys.exit(2)
