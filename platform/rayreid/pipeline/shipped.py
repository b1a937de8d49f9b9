"""The experiment files that travel with the package."""

from pathlib import Path

from rayreid.errors import UserError
from rayreid.files import write_atomically
from rayreid.paths import expanded

_PACKAGE = Path(__file__).parents[1]


def experiment_files() -> Path:
    """Return the folder of the experiment files: inside an installed package, or at the root of a checkout.

    Raises:
        UserError: The installation has none.
    """
    for folder in (_PACKAGE / "experiments", _PACKAGE.parents[1] / "experiments"):
        if (folder / "defaults.yaml").is_file():
            return folder
    raise UserError(f"{_PACKAGE}: this installation has no experiment files; install rayreid again")


def copy_experiment_files(folder: str | Path) -> list[Path]:
    """Copy the experiment files into a folder; a file that is there with the same content stays as it is.

    Args:
        folder: The folder; it is created if it does not exist.

    Returns:
        The files that were written.

    Raises:
        UserError: No folder is named; a file of that name has another content, or is a folder, and nothing is written;
            or the folder cannot be written.
    """
    if not str(folder).strip():
        raise UserError("FOLDER is empty; name the folder to copy to")
    source, to = experiment_files(), expanded(folder)
    contents = {to / one.relative_to(source): one.read_bytes() for one in sorted(source.rglob("*.yaml"))}
    missing = [path for path in contents if not path.exists()]
    for path in contents.keys() - set(missing):
        if path.is_dir():
            raise UserError(f"{path}: there is a folder at this path; move it away, or name another folder")
        if not path.is_file() or path.read_bytes() != contents[path]:
            raise UserError(f"{path}: differs from the file of this version; move it away, or name another folder")
    try:
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, contents[path])
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror}); name another folder") from None
    return missing
