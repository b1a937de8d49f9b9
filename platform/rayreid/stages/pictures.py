"""Writing figures to files that the user names."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from rayreid.errors import UserError
from rayreid.files import write_atomically

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


def save_picture(figure: Figure, path: Path, option: str) -> None:
    """Write a figure whole or not at all, in the form that the file's suffix says.

    Raises:
        UserError: the file cannot be written.
    """
    sink = io.BytesIO()
    figure.savefig(sink, format=path.suffix[1:].lower())
    try:
        write_atomically(path, sink.getvalue())
    except OSError as error:
        raise UserError(f"{option} {path}: it cannot be written ({error.strerror}); choose another place") from error
