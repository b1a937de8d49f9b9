"""Datasets by name. Each turns a folder with a known layout into records."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin

from rayreid.data.datasets.place import is_uri
from rayreid.data.datasets.without_cameras import WithoutCameras
from rayreid.data.store.shards import Record
from rayreid.data.store.witness import SourceFile
from rayreid.errors import UserError
from rayreid.paths import data_path


class Dataset(Protocol):
    """The interface that an ingest needs from a dataset.

    Attributes:
        name: The dataset's name in the registry.
        version: The edition, if results of different editions must not be compared; else "".
        ignored: (path, reason) of files that look like images of the dataset but give no record. `records` fills it,
            for `finish_store`.
        left_out: Files that are no images of the dataset, by reason: their number and the first of them. `records`
            fills it, too.
        notes: Lines for the user on how the dataset was read. `records` fills it, too.
    """

    name: str
    version: str
    ignored: list[tuple[str, str]]
    left_out: dict[str, tuple[int, str]]
    notes: list[str]

    def records(self) -> Iterable[Record]:
        """List the images, in an order that is the same every time; a large dataset lists them one by one."""
        ...

    def read(self, record: Record) -> bytes:
        """Return an image's encoded bytes.

        Raises:
            OSError: The bytes cannot be read. An error that concerns this image alone (`FileNotFoundError`,
                `PermissionError`, `shards.MissingImageError`) rejects it; any other is treated as a failure of the
                storage.
        """
        ...

    def sources(self) -> Iterable[SourceFile]:
        """List the files from which the dataset is read, in an order that is the same every time.

        Names, sizes and times tell whether the dataset may have changed. A dataset that is read from no file has none.
        """
        ...

    def source_of(self, record: Record) -> str:
        """Return the name in `sources` of the file that holds an image's bytes."""
        ...


def _lazy(module: str, class_name: str) -> Callable[..., Dataset]:
    """Return a factory that imports the dataset's module when it is first called."""

    def build(root: str | None = None, /, **options: Any) -> Dataset:
        factory = getattr(import_module(f"rayreid.data.{module}"), class_name)
        title = getattr(factory, "name", module.rpartition(".")[2])
        parameters = inspect.signature(factory).parameters.values()
        known = {p.name: p.annotation for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "root"}
        for option, value in options.items():
            if option == "root":
                raise UserError(f"dataset {title}: root is no option; write it beside dataset, not under options")
            if option not in known:
                hint = _nearest(option, list(known)) if known else "it has none"
                raise UserError(f"dataset {title} has no option {option!r}; {hint}")
            if not any(_is_of(value, kind) for kind in _kinds(known[option])):
                wanted = " or ".join(_KINDS[kind] for kind in _kinds(known[option]) if kind in _KINDS)
                raise UserError(f"dataset {title}: option {option} is {value!r}; give {wanted}")
        return factory(root, **options)

    return build


_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Mapping: "names with values",
    Sequence: "a list",
}
"""Types of options, and how messages call them."""


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that an annotation of an option allows, without those of their contents."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    if get_origin(annotation) is Literal:
        return list(dict.fromkeys(map(type, get_args(annotation))))
    return [get_origin(annotation) or annotation]


def _is_of(value: object, kind: Any) -> bool:
    """Return whether a value that comes from YAML is of a type."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind) and not (kind is Sequence and type(value) is str)


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(sorted(valid))}"


DATASETS: dict[str, Callable[..., Dataset]] = {
    "combined": _lazy("datasets.combined", "Combined"),
    "cuhk01": _lazy("datasets.pattern", "CUHK01"),
    "cuhk03": _lazy("datasets.cuhk03", "CUHK03"),
    "dukemtmc": _lazy("datasets.market1501", "DukeMTMC"),
    "folder": _lazy("datasets.folder", "open_folder"),
    "lmdb": _lazy("datasets.lmdb_store", "LmdbStore"),
    "market1501": _lazy("datasets.market1501", "Market1501"),
    "msmt17": _lazy("datasets.msmt17", "MSMT17"),
    "occluded": _lazy("datasets.pattern", "Occluded"),
    "pattern": _lazy("datasets.pattern", "Pattern"),
    "store": _lazy("datasets.existing_store", "ExistingStore"),
    "synthetic": _lazy("synthetic.synthetic", "Synthetic"),
    "table": _lazy("datasets.table", "Table"),
    "veri776": _lazy("datasets.pattern", "VeRi776"),
    "webdataset": _lazy("datasets.tar_shards", "TarShards"),
}


def open_dataset(name: str, root: str | None, /, **options: Any) -> Dataset:
    """Open a dataset by its name.

    Args:
        name: A key of `DATASETS`.
        root: The dataset's folder; None for a dataset without files.
        **options: The dataset's own options.

    Raises:
        UserError: The name or an option is unknown, or the folder is missing or has another layout. An empty split is
            reported only when the records are listed.
    """
    if name not in DATASETS:
        raise UserError(f"there is no dataset {name!r}; {_nearest(name, list(DATASETS))}")
    return DATASETS[name](root, **options)


class NamedDataset(Protocol):
    """A dataset as described in an experiment file."""

    @property
    def dataset(self) -> str:
        """Return the dataset's name, a key of `DATASETS`."""

    @property
    def root(self) -> str | None:
        """Return the folder or URI; a relative path is resolved as by `data_path`."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the dataset's own options."""

    @property
    def cameras(self) -> str:
        """Return "use", or "ignore" if all cameras count as unknown."""


def open_source(source: NamedDataset) -> Dataset:
    """Open the dataset that a configuration names.

    Raises:
        UserError: The dataset or an option is unknown, or the folder is missing or has another layout.
    """
    dataset = open_dataset(source.dataset, _root(source), **source.options)
    if source.cameras == "ignore":
        if source.dataset == "store":
            raise UserError("dataset store: the cameras are those of the store; set cameras: ignore where it is made")
        return WithoutCameras(dataset)
    return dataset


def location(source: NamedDataset) -> str:
    """Return where the dataset of a configuration is, for messages."""
    return _root(source) or f"dataset {source.dataset}"


def _root(source: NamedDataset) -> str | None:
    root = source.root
    return str(data_path(root)) if root and not is_uri(root) else root
