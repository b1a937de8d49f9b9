"""Images in an LMDB database, the form in which LUPerson is distributed.

lmdb/data.mdb  lmdb/lock.mdb     or one file          key → an encoded image
keys.pkl                         next to it or inside a pickled list of the keys
"""

import os
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

from rayreid.data.datasets.keylist import check_key_list, read_keys
from rayreid.data.datasets.layout import LocalLayout
from rayreid.data.datasets.lmdb_check import cut_off, fault_of
from rayreid.data.images import SUFFIXES
from rayreid.data.store.shards import MissingImageError, Record
from rayreid.data.store.witness import SourceFile, file_at
from rayreid.errors import UserError, missing_extra
from rayreid.paths import expanded

KEY_LISTS = ("keys.txt", "keys.json", "keys.pkl")
_LONGEST_KEY = 511  # bytes, as LMDB is built
METADATA = frozenset((b"__len__", b"__keys__"))


class LmdbStore(LocalLayout):
    """The images of an LMDB: split pool, identity and camera unknown. The keys are those of the database.

    A key of the list that the database lacks is looked up without folders and image suffix, and with ".jpg": the
    published CFS list has "00_00_0000_00000001.jpg" for the key "00_00_0000_00000001".

    Args:
        root: The database: a folder with `data.mdb`, or one file.
        keys: A list of the keys to take: text with one key a line (`.txt`), JSON or a pickle (`keylist.read_keys`). A
            relative path is looked up inside the root and next to it. Without it, the first existing file of
            `KEY_LISTS` is used, or else all keys of the database.

    Raises:
        UserError: The package lmdb is not installed, or the database or the list is missing, damaged or of another
            kind.
    """

    name = "lmdb"
    needs = ("data.mdb",)

    def __init__(self, root: str | Path | None, keys: str | None = None):
        super().__init__(root)
        if self.root.is_dir():
            self.require("data.mdb")
        self._keys = self._find_keys(keys)
        self._database = self.root.resolve()  # one name per process, however many links lead to it
        _check(self._database)

    def records(self) -> Iterator[Record]:
        """List the images, in the order of the key list, or else of the database.

        Raises:
            UserError: The list cannot be read, or, at the end, there was no key.
        """
        self.ignored, self.left_out, self.notes = [], {}, []
        keys = self._own_keys() if self._keys is None else self._listed_keys(self._keys)
        named = (Record(key, -1, -1, "pool", key) for key in keys if self.can_name(key))
        return self.at_least_one(named, self._keys or self.root)

    def read(self, record: Record) -> bytes:
        """Return the value of a key.

        Raises:
            MissingImageError: The database has no such key.
            OSError: The database cannot be read.
        """
        import lmdb

        try:
            with _environment(self._database).begin() as transaction:
                value = transaction.get(record.path.encode())
        except lmdb.BadValsizeError:  # no database has an empty key or one as long as this
            value = None
        except lmdb.Error as error:
            raise OSError(f"{self.root}: key {record.path!r}: {error}") from error
        if value is None:
            raise MissingImageError(f"{self.root} has no key {record.path!r}")
        return value

    def sources(self) -> Iterator[SourceFile]:
        """List the database's file and the list of keys; the file of its locks changes whenever it is read."""
        yield file_at("data.mdb", _file_of(self._database))
        if self._keys is not None:
            yield file_at(self._keys.name, self._keys)

    def source_of(self, record: Record) -> str:
        """Return the name of the database's file."""
        return "data.mdb"

    def _find_keys(self, keys: str | None) -> Path | None:
        folders = (self.root, self.root.parent) if self.root.is_dir() else (self.root.parent,)
        names = KEY_LISTS if keys is None else (str(expanded(keys)),)
        found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
        if not found and keys is not None:
            raise UserError(
                f"dataset lmdb: there is no list of keys {keys}; it is looked up in {folders[0]} and beside it"
            )
        if not found:
            return None
        check_key_list(found[0])
        return found[0]

    def _listed_keys(self, path: Path) -> Iterator[str]:
        """Yield the keys of a list as the database spells them; those that it lacks, as the list does.

        An entry is ignored if only without its folders it is a key, and an earlier entry with other folders is, too.
        """
        respelt = 0
        written: dict[int, int] = {}  # hashes, because a list may have millions of entries
        with _environment(self._database).begin() as transaction:
            cursor = transaction.cursor()
            for key in read_keys(path):
                spelling = next((one for one in _spellings(key) if _has(cursor, one)), key)
                if _has_folder(key) and not _has_folder(spelling):
                    whole = hash(key)
                    if written.setdefault(hash(spelling), whole) != whole:
                        self.ignore(key, f"ambiguous: an earlier entry with other folders is {spelling}, too")
                        continue
                respelt += spelling != key
                yield spelling
        if respelt:
            self.notes.append(f"{respelt} keys of {path.name} are spelt differently in the database")

    def _own_keys(self) -> Iterator[str]:
        with _environment(self._database).begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                if key not in METADATA:
                    yield key.decode("utf-8", "surrogateescape")


def _spellings(key: str) -> Iterator[str]:
    """Yield the key, and what else the database may call it."""
    yield key
    name = PureWindowsPath(key).name  # accepts both kinds of slashes
    for one in (key, name):
        stem, suffix = os.path.splitext(one)  # noqa: PTH122  (Path is slow for millions)
        if suffix.lower() in SUFFIXES:
            yield stem
        else:
            yield f"{one}.jpg"
    yield name


def _has_folder(key: str) -> bool:
    return "/" in key or "\\" in key


def _has(cursor: Any, key: str) -> bool:
    """Return whether the database has a key; its value is not read."""
    try:
        encoded = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return 0 < len(encoded) <= _LONGEST_KEY and cursor.set_key(encoded)


@cache  # per process, not per dataset: LMDB forbids opening a database twice in one process
def _environment(root: Path) -> Any:
    """Return the opened database.

    Raises:
        UserError: The database cannot be opened, or was most likely copied only in part.
    """
    import lmdb

    try:
        environment = lmdb.open(
            str(root), subdir=root.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
        )
    except lmdb.Error as error:
        raise UserError(f"dataset lmdb: {root} cannot be opened: {error}") from error
    cut = cut_off(environment, _file_of(root))
    if cut is not None:
        environment.close()
        raise UserError(f"dataset lmdb: {root}: {cut}; copy it again")
    return environment


def _check(root: Path) -> None:
    """Refuse a database that is damaged, without opening it in this process."""
    if find_spec("lmdb") is None:
        raise missing_extra("dataset lmdb", "lmdb", ["lmdb"])
    try:
        status = _file_of(root).stat()
    except OSError as error:
        raise UserError(f"dataset lmdb: {root} cannot be read ({error.strerror})") from None
    fault = _fault(root, status.st_ino, status.st_size, status.st_mtime_ns)
    if fault is not None:
        raise UserError(f"dataset lmdb: {root} is damaged or no LMDB ({fault}); copy it again")


@lru_cache
def _fault(root: Path, inode: int, size: int, modified: int) -> str | None:
    return fault_of(root)


def _file_of(root: Path) -> Path:
    return root / "data.mdb" if root.is_dir() else root
