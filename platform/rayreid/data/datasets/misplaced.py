"""Roots that miss the layout which was asked for: one level too high or too low, or the layout of another dataset."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

SIGNS = {
    "market1501": (("bounding_box_train", "query", "bounding_box_test"),),
    "msmt17": (("train", "test", "list_train.txt"), ("mask_train_v2", "mask_test_v2", "list_train.txt")),
    "cuhk03": (("images_detected", "splits_new_detected.json"), ("images_labeled", "splits_new_labeled.json")),
    "veri776": (("image_train", "image_query", "image_test"),),
    "cuhk01": (("campus",),),
    "occluded": (("occluded_body_images", "whole_body_images"),),
    "lmdb": (("data.mdb",),),
}
"""What a root holds, by dataset; some have editions. Folders of any name (`pattern`, `folder`) have no signs."""
_DEPTH = 3
_FOLDERS = 2_000  # enough for a tree of datasets; a pool's folders are not searched to their end


def remedy(root: Path, parts: Sequence[str], dataset: str) -> str | None:
    """Return what to change if another folder has these parts, or if the root belongs to another dataset; else None.

    Args:
        root: A folder without at least one of the parts, or a file.
        parts: What it should hold.
        dataset: The dataset that was asked for.
    """
    wanted = [tuple(parts), *SIGNS.get(dataset, ())]
    for folder in _neighbours(root):
        if any(_holds(folder, sign) for sign in wanted):
            return f"did you mean root {folder}?"
    for other, signs in SIGNS.items():
        if other != dataset and any(_holds(root, sign) for sign in signs):
            return f"it has the layout of {other}; set dataset: {other}"
    return None


def _holds(folder: Path, parts: Sequence[str]) -> bool:
    return all((folder / part).exists() for part in parts)


def _neighbours(root: Path) -> Iterator[Path]:
    """Yield the folders below a root, level by level, and then those above it."""
    level = [root]
    for _ in range(_DEPTH):
        level = list(islice((child for folder in level for child in _children(folder)), _FOLDERS))
        yield from level
    yield from list(root.parents)[:2]


def _children(folder: Path) -> list[Path]:
    """Return the sub-folders by name, without hidden ones and those that archives from a Mac hold beside the files."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
        return [folder / name for name in sorted(names) if name != "__MACOSX"]
    except OSError:
        return []
