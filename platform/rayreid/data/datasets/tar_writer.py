"""Tar archives of images in the manner of WebDataset, which `tar_shards` and WebDataset's own readers read.

subset-000000.tar  subset-000001.tar  …      000000000.jpg  000000000.json  000000001.jpg  …
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from posixpath import splitext
from typing import IO, Any

from rayreid.data.signatures import HEAD_BYTES, suffix_of
from rayreid.files import replacing

TAR_BYTES = 2**28
"""Largest size of an archive, unless a single image is larger."""

Sample = tuple[bytes | memoryview, Mapping[str, Any]]
"""The bytes of an image file, and what its `.json` says: its `key`, and whatever else is known."""


def write_tars(folder: Path, name: str, samples: Iterable[Sample], limit: int = TAR_BYTES) -> list[Path]:
    """Write images and their descriptions to archives, in the given order; the same samples give the same bytes.

    A member is named by its number, for keys may hold what names of members must not. Each archive gets its name when
    it is complete.

    Args:
        folder: An existing folder.
        name: Beginning of the archives' names.
        samples: The images, read one after the other, with JSON objects.
        limit: Largest size of an archive in bytes; an archive holds at least one image.

    Returns:
        The archives.
    """
    written: list[Path] = []
    waiting = _encoded(samples)
    pair = next(waiting, None)
    while pair is not None:
        path = folder / f"{name}-{len(written):06d}.tar"
        with (
            replacing(path) as temporary,
            temporary.open("wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            while pair is not None:
                if tar.offset and _closed(tar.offset + sum(map(_size_of, pair))) > limit:
                    break
                for member, data in pair:
                    tar.addfile(member, data)
                pair = next(waiting, None)
        written.append(path)
    return written


Member = tuple[tarfile.TarInfo, IO[bytes]]


def _encoded(samples: Iterable[Sample]) -> Iterator[tuple[Member, Member]]:
    for number, (image, described) in enumerate(samples):
        text = json.dumps(described, sort_keys=True).encode()
        # A dataset recognises an image by its first bytes or, if these are unusual, by its name.
        suffix = suffix_of(bytes(image[:HEAD_BYTES])) or splitext(described["key"])[1].lower()
        yield _member(f"{number:09d}{suffix}", image), _member(f"{number:09d}.json", text)


def _member(name: str, data: bytes | memoryview) -> Member:
    """Return a member without a time or an owner, which would differ from one writing to the next."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    return header, io.BytesIO(data)


def _size_of(member: Member) -> int:
    """Return the bytes that a member takes: its header, and its data in whole blocks."""
    return tarfile.BLOCKSIZE * (1 - -member[0].size // tarfile.BLOCKSIZE)


def _closed(size: int) -> int:
    """Return the size of an archive whose members take `size` bytes: two empty blocks more, in whole records."""
    return tarfile.RECORDSIZE * -(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE)
