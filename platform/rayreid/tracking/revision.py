"""The checkout that the code runs from."""

import subprocess
from pathlib import Path


def git_sha() -> str | None:
    """The commit of the code's checkout; None outside one."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
