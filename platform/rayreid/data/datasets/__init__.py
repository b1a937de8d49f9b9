"""Datasets by name: each turns a folder of a known layout into records."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol

from rayreid.data.datasets.place import is_uri
from rayreid.data.store.store import Record
from rayreid.errors import UserError
from rayreid.paths import data_path


class Dataset(Protocol):
    """What an ingest needs to know of a dataset.

    Attributes:
        name: Its name in the registry.
        version: Which edition of it, where results must not be compared across editions; else "".
        ignored: (path, reason) of files that look like images of the dataset but give no record; filled by
            `records`, for `finish_store`.
    """

    name: str
    version: str
    ignored: list[tuple[str, str]]

    def records(self) -> Iterable[Record]:
        """List the images, in an order that is the same every time; a large dataset does it one by one."""
        ...

    def read(self, record: Record) -> bytes:
        """Return an image's encoded bytes.

        Raises:
            OSError: They cannot be read. What is of this image alone (`FileNotFoundError`, `PermissionError`,
                `shards.MissingImageError`) rejects it; anything else is taken for trouble with the storage.
        """
        ...


def _lazy(module: str, class_name: str) -> Callable[..., Dataset]:
    """Return a factory that imports the dataset's module when it is first asked for."""

    def build(root: str | None = None, /, **options: Any) -> Dataset:
        factory = getattr(import_module(f"rayreid.data.{module}"), class_name)
        title = getattr(factory, "name", module.rpartition(".")[2])
        parameters = inspect.signature(factory).parameters.values()
        known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "root"]
        for option in options:
            if option == "root":
                raise UserError(f"dataset {title}: root is no option; write it beside dataset, not under options")
            if option not in known:
                hint = _nearest(option, known) if known else "it has none"
                raise UserError(f"dataset {title} has no option {option!r}; {hint}")
        return factory(root, **options)

    return build


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(sorted(valid))}"


DATASETS: dict[str, Callable[..., Dataset]] = {
    "combined": _lazy("datasets.combined", "Combined"),
    "cuhk03": _lazy("datasets.cuhk03", "CUHK03"),
    "folder": _lazy("datasets.folder", "open_folder"),
    "lmdb": _lazy("datasets.lmdb_store", "LmdbStore"),
    "market1501": _lazy("datasets.market1501", "Market1501"),
    "msmt17": _lazy("datasets.msmt17", "MSMT17"),
    "synthetic": _lazy("synthetic.synthetic", "Synthetic"),
    "table": _lazy("datasets.table", "Table"),
    "webdataset": _lazy("datasets.tar_shards", "TarShards"),
}


def open_dataset(name: str, root: str | None, /, **options: Any) -> Dataset:
    """Open a dataset by its name.

    Args:
        name: A key of `DATASETS`.
        root: The dataset's folder; None for one without files.
        **options: The dataset's own options.

    Raises:
        UserError: The name or an option is unknown, the folder is missing or of another layout. That a
            required split is empty shows when the records are listed.
    """
    if name not in DATASETS:
        raise UserError(f"there is no dataset {name!r}; {_nearest(name, list(DATASETS))}")
    return DATASETS[name](root, **options)


class NamedDataset(Protocol):
    """A dataset as an experiment file names it."""

    @property
    def dataset(self) -> str:
        """A key of `DATASETS`."""

    @property
    def root(self) -> str | None:
        """The folder or URI; a relative path is looked up as `data_path` does."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The dataset's own options."""


def open_source(source: NamedDataset) -> Dataset:
    """Open the dataset that a configuration names.

    Raises:
        UserError: The dataset or an option is unknown, the folder is missing or of another layout.
    """
    root = source.root
    if root and not is_uri(root):
        root = str(data_path(root))
    return open_dataset(source.dataset, root, **source.options)
