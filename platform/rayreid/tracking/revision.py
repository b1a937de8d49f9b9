"""Where a run comes from: the command, its user, and the commit of the code's checkout."""

import getpass
import shlex
import subprocess
import sys
from pathlib import Path

from rayreid.paths import inside_job

SOURCE_TAGS = ("mlflow.source.name", "mlflow.source.type", "mlflow.user")
"""The tags that MLflow's UI shows as a run's source and user."""


def source_tags() -> dict[str, str | None]:
    """Return the values of `SOURCE_TAGS` for the runs of this command; None where one is not known."""
    program, *arguments = sys.argv
    command = shlex.join([Path(program).name, *arguments])
    return dict(zip(SOURCE_TAGS, (command, "JOB" if inside_job() else "LOCAL", _user()), strict=True))


def git_sha() -> str | None:
    """Return the commit of the checkout that the code runs from, or None outside a checkout."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _user() -> str | None:
    """Return the user's login name; None in a container whose user has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
