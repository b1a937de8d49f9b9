"""Errors that are the user's to mend, as opposed to faults of the program."""


class UserError(Exception):
    """Something the user can mend: a missing folder, a wrong value, a file of another kind.

    The message is one clear line that names the file or key and says what to do. The command line prints it
    without a traceback (unless `--debug`) and exits with status 2.
    """


class StoppedEarly(UserError):  # noqa: N818 - no fault
    """A training was stopped by the median rule: it did not fail, and it has no result."""
