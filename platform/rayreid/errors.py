"""Errors that the user can fix, as opposed to bugs in the program, and errors in one line."""

from collections.abc import Sequence
from typing import Literal

from rayreid.masking import masked


class UserError(Exception):
    """An error that the user can fix: a missing folder, a wrong value, a file of the wrong kind.

    The message is one clear line that names the file or key and says what to do. The command line prints it
    without a traceback (unless `--debug`) and exits with status 2. Credentials in it are masked.
    """

    def __init__(self, *arguments: object):
        super().__init__(*(masked(one) if isinstance(one, str) else one for one in arguments))


class StoppedEarly(UserError):  # noqa: N818 - no fault
    """Raised when the median rule stops a training: it did not fail, and it has no result."""


def missing_extra(feature: str, extra: str, packages: Sequence[str], otherwise: str = "") -> UserError:
    """Return the error that a feature needs packages which only an extra of the installation brings.

    Args:
        feature: The key, option or command that needs them.
        extra: Name of the extra in `pyproject.toml`.
        packages: The packages as pip knows them.
        otherwise: How to do without, as the end of the sentence.
    """
    without = f"; or {otherwise}" if otherwise else ""
    return UserError(f"{feature} needs the extra rayreid[{extra}]: pip install {' '.join(packages)}{without}")


def escaped(text: str) -> str:
    """Return a text in which line breaks and other characters that cannot be printed are escaped.

    Names of files, keys and tensors may contain them; a message is one line.
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def one_line(
    error: BaseException | str, part: Literal["first", "last", "all"] = "first", limit: int | None = None
) -> str:
    """Return an error's text as one line, credentials masked; the name of its class where it has no text.

    Args:
        error: The error, or its text.
        part: Which lines to keep. "first": what most libraries put the reason in. "last": the reason where the text is
            the traceback of another process. "all": joined by spaces, where the reason runs over several lines.
        limit: Characters to keep, if not all.
    """
    text = masked(str(error)).strip() or type(error).__name__
    if part == "all":
        return " ".join(text.split())[:limit]
    return text.splitlines()[0 if part == "first" else -1][:limit]


def cause_of(error: BaseException) -> BaseException:
    """Return the error that was raised in a Ray task: it arrives wrapped in one whose text is the remote traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
