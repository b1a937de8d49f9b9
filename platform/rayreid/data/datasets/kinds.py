"""Which files of a folder are images, and what the others are."""

import os
import re

from rayreid.data.datasets.tree import is_hidden
from rayreid.data.images import SUFFIXES
from rayreid.data.signatures import is_image, other_kind

_OTHER_SUFFIXES = frozenset(
    (
        *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log"),
        *(".py", ".m", ".ipynb", ".sh", ".mat", ".npy", ".npz", ".pkl", ".pt", ".pth", ".parquet", ".lmdb", ".mdb"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".mp4", ".avi", ".mov", ".mkv", ".db"),
    )
)
"""Suffixes of files that often lie beside images; such a file is not opened to see whether it is one."""

_SUFFIX = re.compile(r"\.\w{1,8}")


def is_named_image(path: str) -> bool:
    """Return whether a file's suffix says that it is an image."""
    return _suffix(path) in SUFFIXES


def reason_by_name(path: str) -> str | None:
    """Return why a file is no image of the dataset, judged by its path relative to the root; None if it may be one."""
    if path.rpartition("/")[2].startswith("._"):
        return "AppleDouble file"
    if is_hidden(path):
        return "hidden"
    suffix = _suffix(path)
    return f"file {suffix}" if suffix in _OTHER_SUFFIXES else None


def kind_by_name(path: str) -> str:
    """Return what a file is that is not read, judged by its path relative to the root."""
    if (reason := reason_by_name(path)) is not None:
        return reason
    suffix = _suffix(path)
    return f"file {suffix}" if _SUFFIX.fullmatch(suffix) else "file without a suffix of images"


def reason_by_bytes(head: bytes) -> str | None:
    """Return why a file that begins with these bytes is no image; None if it is one."""
    return None if is_image(head) else other_kind(head) or "no image"


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122  (Path is slow for millions)
