"""Where a run comes from: the command, its user, and the commit of the code's checkout."""

import getpass
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rayreid.masking import masked_arguments
from rayreid.paths import inside_job

DIRTY = "-dirty"
"""Suffix of a commit whose checkout has changes of the package that are not committed."""

SOURCE_TAGS = ("mlflow.source.name", "mlflow.source.type", "mlflow.user")
"""The tags that MLflow's UI shows as a run's source and user."""


def source_tags() -> dict[str, str | None]:
    """Return the values of `SOURCE_TAGS` for the runs of this command; None where one is not known."""
    program, *arguments = sys.argv
    command = shlex.join([Path(program).name, *masked_arguments(arguments)])  # joined, it would hide where a value ends
    return dict(zip(SOURCE_TAGS, (command, "JOB" if inside_job() else "LOCAL", _user()), strict=True))


def source_in(tags: Mapping[str, str]) -> dict[str, str | None]:
    """Return the values of `SOURCE_TAGS` among a run's tags; None where it has none."""
    return {key: tags.get(key) for key in SOURCE_TAGS}


def git_sha() -> str | None:
    """Return the commit of the checkout that the code runs from, or None outside a checkout.

    It ends in `DIRTY` if files of the package differ from the commit; changes elsewhere (a ledger, a document) change
    no result.
    """
    commit = _git("rev-parse", "HEAD")
    return commit and commit + (DIRTY if _git("status", "--porcelain", "--", ".") else "")


def _git(*arguments: str) -> str | None:
    """Return what git says in the package's folder, or None if it says nothing or fails."""
    package = Path(__file__).parents[1]
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=package, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _user() -> str | None:
    """Return the user's login name; None in a container whose user has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
