"""The command line: `rayreid run FILE`, one command per stage, and the commands around them.

Each module here has the commands for one kind of object. A command imports its stage when it runs, which keeps `--help`
fast.
"""

import atexit
import gc
import sys
import traceback
from types import TracebackType

import typer

from rayreid.cli import about, artifacts, experiments, plans, retrieval, stores, weights
from rayreid.cli.interrupts import answering_interrupts
from rayreid.cli.options import GROUP, ErrorDisplay
from rayreid.console import any_encoding
from rayreid.disk_faults import as_user_error
from rayreid.execution.standby import StandBy
from rayreid.masking import masked
from rayreid.paths import output_root

app = typer.Typer(
    help="Find out which person crops are worth pre-training on, with which stem, and what that gains on your target.",
    add_completion=False,
    pretty_exceptions_enable=False,
    **GROUP,
)
app.add_typer(experiments.app)
app.add_typer(plans.app)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(retrieval.app)
app.add_typer(stores.app)
app.add_typer(weights.app, name="weights")
app.add_typer(about.app)


_INTERRUPTED = 130  # Typer's exit status for Ctrl-C


def main(arguments: list[str] | None = None) -> None:
    """Run a command; entry point of `rayreid` and of the jobs.

    An error that the user can fix, or that the storage caused, is printed in one line, with exit status 2.

    Args:
        arguments: Arguments of the command line (default: `sys.argv[1:]`).
    """
    _search_cycles_rarely()
    display = ErrorDisplay()
    for stream in (sys.stdout, sys.stderr):
        any_encoding(stream)
    copy = None
    try:
        with answering_interrupts():
            app(arguments, standalone_mode=True, obj=display)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("rayreid: interrupted; run the same command again to resume", file=sys.stderr)
        raise
    except StandBy as raised:
        copy = raised.with_traceback(None)
    except Exception as error:
        told = as_user_error(error, output_root)
        if display.traceback or told is None:
            sys.excepthook = _show_masked  # Typer has put its own in place of it
            raise
        print(masked(f"rayreid: {told}"), file=sys.stderr)
        sys.exit(2)
    if copy is not None:
        copy.serve()


def _search_cycles_rarely() -> None:
    """Let Python search its objects for unreachable cycles less often, and not at all as it ends.

    The modules of a command are a million objects that stay. Searching them took a fifth of a short command's time.
    """
    gc.set_threshold(10_000, 10, 10)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def _show_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody caught, credentials masked."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")
