"""Names of per-row metrics and files."""

import hashlib

_MOST = 100
"""Longest part of a name: MLflow accepts 250 characters, and the name of a metric may have two labels."""


def slug(label: str) -> str:
    """Return a label in a form that can be part of a metric's or a file's name; a long one ends in a hash of it."""
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in label)
    if len(name) <= _MOST:
        return name
    digest = hashlib.blake2b(label.encode(), digest_size=4).hexdigest()
    return f"{name[: _MOST - len(digest) - 1]}_{digest}"
