"""The result of one check, as one line of a report."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was checked, the result, and what to do about a fault."""

    mark: Literal["ok", "note", "bad"]
    subject: str
    text: str
