"""Handing on the kept images of the selections on a page, to programs that know nothing of rayreid."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayreid import forms
from rayreid.config import Source
from rayreid.data.datasets.place import is_uri, local_path
from rayreid.data.datasets.tar_writer import Sample, write_tars
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.files import TEMPORARY, make_folder, sync_folder, write_atomically
from rayreid.parquet import write_table
from rayreid.paths import data_path, expanded
from rayreid.pipeline.compared_selection import Selection
from rayreid.selection.kept_images import as_csv, as_lines, in_order, kept_table
from rayreid.selection.provenance import Provenance
from rayreid.state_files import read_json
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.names import slug

FORMATS = ("csv", "parquet", "txt", "webdataset")
MANIFEST = "export.json"
_FORM = forms.record({"format": forms.text, "selections": forms.mapping_of(forms.mapping_of(forms.anything))})


@dataclass(frozen=True)
class Export:
    """A folder with the kept images of each selection, in one of `FORMATS`.

    A file `<selection>.csv`, `.parquet` or `.txt`, or a folder `<selection>/` of tar archives; and `export.json`, which
    says what was exported. The folder gets its name when it is complete.

    Args:
        format: One of `FORMATS`.
        folder: The folder; it is created, or empty.

    Raises:
        UserError: There is no such format, or the folder holds something else than an export.
    """

    format: str
    folder: Path

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"--export {self.format}: there is no such format; choose {', '.join(FORMATS)}")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: a file, not a folder to export to; name another with --export-to")
        if self._occupied and not (self.folder / MANIFEST).is_file():
            raise UserError(
                f"{self.folder}: holds files that are no export of rayreid; name an empty folder with --export-to"
            )

    @property
    def _occupied(self) -> bool:
        return self.folder.is_dir() and any(self.folder.iterdir())

    def check(self, subsets: Mapping[str, Artifact], pool: Source) -> None:
        """Check, before anything is made, that the folder holds no export of other subsets, or of files elsewhere.

        Args:
            subsets: The subset of each selection, by label.
            pool: Where the pool's files are.

        Raises:
            UserError: It does.
        """
        if not self._occupied:
            return
        held = read_json(self.folder / MANIFEST, _FORM)
        there = {label: one.get("subset") for label, one in held["selections"].items()}
        same = held["format"] == self.format and held.get("root") == self._root(_Files(pool))
        if not same or there != {label: str(subset) for label, subset in subsets.items()}:
            raise self._another()

    def _root(self, files: "_Files") -> str | None:
        """The folder below which the exported paths lie; None where there are none."""
        return None if files.root is None or self.format == "txt" else str(files.root)

    def _another(self) -> UserError:
        return UserError(f"{self.folder}: holds another export; remove it, or name an empty folder with --export-to")

    def write(self, store: ImageStore, found: Sequence[Selection], pool: Source, provenance: Provenance | None) -> str:
        """Write the kept images of each selection, and return a line that says where they are.

        An export of the same images in the same format is left as it is.

        Args:
            store: The pool.
            found: The selections.
            pool: Where the pool's files are, for their paths.
            provenance: The origins of the pool's images, if known.

        Raises:
            UserError: The folder holds another export, or cannot be written.
        """
        names = _names([one.label for one in found])
        files, origins = _Files(pool), provenance.origins(store.keys) if provenance else None
        content = self._content(store, found, names, files, origins)
        if self._occupied:
            if read_json(self.folder / MANIFEST, _FORM) != content:
                raise self._another()
            return f"{self.folder}: the export is already there"
        make_folder(self.folder.parent)
        unfinished = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            unfinished.mkdir()
            for one in found:
                self._write_one(unfinished, names[one.label], store, one, files, origins)
            write_atomically(unfinished / MANIFEST, json.dumps(content, indent=1))
            unfinished.replace(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror or error}); name another with --export-to"
            ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return f"{self.folder}: {len(found)} selections as {self.format}"

    def _content(
        self,
        store: ImageStore,
        found: Sequence[Selection],
        names: Mapping[str, str],
        files: "_Files",
        origins: np.ndarray | None,
    ) -> dict[str, Any]:
        selections = {
            one.label: {
                "name": names[one.label],
                "strategy": one.strategy,
                "subset": str(one.artifact),
                "images": int(one.manifest["count"]),
            }
            for one in found
        }
        beside = {"root": self._root(files), "origins": None}
        if origins is not None and self.format != "txt":
            beside["origins"] = hashlib.sha256("\n".join(map(str, origins)).encode()).hexdigest()
        return {"format": self.format, "pool": store.fingerprint, **beside, "selections": selections}

    def _write_one(
        self,
        folder: Path,
        name: str,
        store: ImageStore,
        one: Selection,
        files: "_Files",
        origins: np.ndarray | None,
    ) -> None:
        rows = in_order(store.keys, one.priority, int(one.manifest["count"]))
        table = kept_table(store.keys, one.priority, rows, origins, files.path_of)
        if self.format == "csv":
            write_atomically(folder / f"{name}.csv", as_csv(table))
        elif self.format == "txt":
            write_atomically(folder / f"{name}.txt", as_lines(table))
        elif self.format == "parquet":
            write_table(folder / f"{name}.parquet", table)
        else:
            (folder / name).mkdir()
            write_tars(folder / name, name, _samples(store, rows, table))


class _Files:
    """The files of a pool, as far as a key is a path below the pool's root.

    Args:
        pool: The pool as the experiment names it.

    Attributes:
        root: That folder; None if there is none.
    """

    def __init__(self, pool: Source):
        root = pool.root
        if root is not None and is_uri(root):
            root = local_path(root)
        self.root = data_path(str(root)) if root is not None else None

    def path_of(self, key: str) -> str | None:
        """Return the absolute path of an image's file; None if there is no such file below the root."""
        if self.root is None:
            return None
        path = self.root / key
        if ".." in path.parts or not path.is_relative_to(self.root):
            return None
        try:
            return str(path) if path.is_file() else None
        except OSError:  # a key that is too long for a path, or a folder that may not be read
            return None


def planned_export(format: str | None, folder: str | None, beside: Path) -> Export | None:
    """Return the export that a command asks for; None if it asks for none.

    Args:
        format: One of `FORMATS`, or None.
        folder: The folder that the user named (default: `kept-<format>` in `beside`).
        beside: The experiment's folder.

    Raises:
        UserError: A folder is named without a format, or see `Export`.
    """
    if format is None:
        if folder is not None:
            raise UserError(f"--export-to {folder}: say with --export in which format ({', '.join(FORMATS)})")
        return None
    return Export(format, expanded(folder).absolute() if folder is not None else beside / f"kept-{format}")


def _names(labels: Sequence[str]) -> dict[str, str]:
    """Return a file name for each label; they differ even where letters of the labels are not fit for one."""
    names: dict[str, str] = {}
    for label in labels:
        name = slug(label)
        taken = {known.lower() for known in names.values()}
        while name.lower() in taken:
            name += "_"
        names[label] = name
    return names


def _samples(store: ImageStore, rows: np.ndarray, table: pa.Table) -> Iterator[Sample]:
    """Yield the original bytes of kept images with what the table says of each, in the order of the keys.

    This order reads the store's shards from front to back; `rank` tells the order of priority.
    """
    for place in np.argsort(rows).tolist():
        described = table.slice(place, 1).to_pylist()[0]
        yield store.encoded(int(rows[place])), {name: value for name, value in described.items() if value is not None}
