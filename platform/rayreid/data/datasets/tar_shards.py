"""Images in tar archives, as written by WebDataset. Each image is read directly from its archive; nothing is unpacked.

pool-000000.tar  pool-000001.tar  …      000000017.jpg  000000017.json  …
"""

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from posixpath import normpath, splitext
from typing import BinaryIO, Self

from rayreid.data.datasets.kinds import is_named_image, kind_by_name, reason_by_bytes
from rayreid.data.datasets.layout import LocalLayout, refusal
from rayreid.data.datasets.tree import is_hidden, walk
from rayreid.data.images import SUFFIXES
from rayreid.data.signatures import HEAD_BYTES
from rayreid.data.store.shards import MAX_IMAGE_BYTES, MissingImageError, Record
from rayreid.errors import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_TAIL = 2**20  # an archive ends in zeros that fill up a record of some 10 KB
_EXTENSIONS = frozenset(
    (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
)
_EXTENSION_BYTES = 2**20  # tarfile reads them into memory
# Errors that tarfile raises for an archive that is damaged or malicious.
_DAMAGE = (tarfile.TarError, ValueError, ArithmeticError, IndexError, RecursionError)


class TarShards(LocalLayout):
    """The images in a folder's tar archives, or in a single one: split pool, identity and camera unknown.

    A key is the member's name; with several archives, it begins with the archive's name: "pool-000000/000000017.jpg".
    A member without a suffix is an image if its first bytes say so. Hidden members and all other files of the folder,
    archives in its sub-folders among them, are left out and counted.

    Args:
        root: A folder with `.tar` files, or one such file.

    Raises:
        UserError: There is no archive, or one is compressed.
    """

    name = "webdataset"

    def __init__(self, root: str | Path | None):
        super().__init__(root)
        files = self._files()
        for file in files:
            if file.name.lower().endswith(COMPRESSED):
                raise UserError(
                    f"dataset webdataset: {file} is compressed, so that no single image can be read from it; "
                    "unpack it to a plain .tar (images hardly shrink anyway)"
                )
        if not any(_is_tar(file) for file in files):
            raise UserError(f"dataset webdataset: {self.root} {'has' if self.root.is_dir() else 'is'} no .tar file")

    def records(self) -> Iterator[Record]:
        """List the images, archive by archive (by name), in the order in which the archive has them.

        Raises:
            UserError: An archive cannot be read for another reason than its permissions or damage, or, at the end,
                there was no image.
        """
        self.ignored, self.left_out = [], {}
        return self.at_least_one(self._members(), self.root)

    def read(self, record: Record) -> bytes:
        """Return a member's bytes.

        Raises:
            MissingImageError: The archive ends before the member does, or the recorded position is invalid.
            OSError: The archive is missing or cannot be read.
        """
        tar, *place = record.path.rsplit(":", 2)
        offset, size = map(int, place)
        if offset < 0 or size < 0:
            raise MissingImageError(f"{tar}: no member lies at {offset} with {size} bytes")
        with Path(tar).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise MissingImageError(f"{tar} is cut off", "cut off")
        return data

    def source_of(self, record: Record) -> str:
        """Return the path of the archive that holds an image, relative to the root."""
        return super().source_of(replace(record, path=record.path.rsplit(":", 2)[0]))

    def _files(self) -> list[Path]:
        if not self.root.is_dir():
            return [self.root]
        return sorted(file for file in self.root.iterdir() if not file.is_dir() and not is_hidden(file.name))

    def _leave_out_others(self) -> None:
        """Count the files below the root that are no archives, or lie in a sub-folder."""
        for name, _ in walk(self.root, self.pass_over):
            if is_hidden(name):
                self.leave_out(name, kind_by_name(name))
            elif _is_tar(Path(name)):
                if "/" in name:
                    self.leave_out(name, "archive in a sub-folder")
            else:
                self.leave_out(name, "image outside the archives" if is_named_image(name) else kind_by_name(name))

    def _members(self) -> Iterator[Record]:
        if self.root.is_dir():
            self._leave_out_others()
        tars = [file for file in self._files() if _is_tar(file) and self.can_name(file.name)]
        for tar in tars:
            try:
                with tar.open("rb") as file:
                    yield from self._images(tar, file, f"{tar.stem}/" if len(tars) > 1 else "")
            except PermissionError:
                self.ignore(str(tar), "cannot be read")
            except OSError as error:  # a disk that is unavailable for a moment must not cost a part of the pool
                raise UserError(
                    f"dataset webdataset: {tar} cannot be read: {error.strerror or error}; fix that and run again"
                ) from error
            except _DAMAGE as error:
                self.ignore(str(tar), f"cannot be listed to its end: {error}")

    def _images(self, tar: Path, file: BinaryIO, prefix: str) -> Iterator[Record]:
        """Yield the images of one archive; if it is damaged, those before the damage."""
        length = tar.stat().st_size
        archive = tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)  # noqa: SIM115  (the file is closed by the caller)
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member
            if member.size < 0 or archive.offset < member.offset_data:  # an extension's size replaced the header's
                raise tarfile.HeaderError("negative size")
            key = prefix + normpath(member.name)
            if member.isdir():
                pass
            elif (reason := _no_image(member, file)) is not None:
                self.leave_out(key, reason)
            elif self.can_name(key):
                if reason := _refusal(member, length):
                    self.ignore(prefix + member.name, reason)
                else:
                    yield Record(key, -1, -1, "pool", f"{tar}:{member.offset_data}:{member.size}")
            if archive.offset > length:
                raise tarfile.ReadError("unexpected end of data")
        file.seek(archive.offset)
        rest = file.read(_TAIL)
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):  # tarfile mistakes a damaged header for the end
            self.ignore(str(tar), "cannot be listed to its end: cut off, damaged, or joined to another")


class _Header(tarfile.TarInfo):
    """A header that makes tarfile neither go backwards, where it would list without end, nor fill all memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.HeaderError("negative size")
        if header.type in _EXTENSIONS and header.size > _EXTENSION_BYTES:
            raise tarfile.HeaderError(f"an extended header of {header.size} bytes")
        return header


def _is_tar(file: Path) -> bool:
    return file.suffix.lower() == ".tar"


def _no_image(member: tarfile.TarInfo, file: BinaryIO) -> str | None:
    """Return why a member is no image, by its name, or, if it has no suffix, by its first bytes; None if it is one."""
    name = normpath(member.name)
    if refusal(name) is None and is_hidden(name):
        return kind_by_name(name)
    suffix = splitext(name)[1].lower()
    if suffix in SUFFIXES:
        return None
    if suffix or not member.isreg():
        return f"file {suffix}".strip()
    file.seek(member.offset_data)
    return reason_by_bytes(file.read(min(member.size, HEAD_BYTES)))


def _refusal(member: tarfile.TarInfo, length: int) -> str | None:
    """Return the reason to refuse a member of an archive of `length` bytes; None if it is acceptable."""
    if reason := refusal(member.name):
        return reason
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "no plain file"
    if member.size > MAX_IMAGE_BYTES:
        return "too large"
    return "cut off" if member.offset_data + member.size > length else None
