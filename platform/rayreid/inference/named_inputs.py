"""What a user names on the command line: a model, images, an artifact, a file to write."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayreid.data.datasets import open_dataset
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.files import checksum
from rayreid.models.weights import read_header, weights_of
from rayreid.paths import inside_job, output_root

MODELS = ("finetune", "adapt", "pretrain", "proxy", "given")
"""Stages whose artifacts hold a network."""


@dataclass(frozen=True)
class Made:
    """A complete artifact that was found by its folder.

    Attributes:
        folder: where it lies.
        recipe: what it was made from: `stage`, `fields`, `inputs` (ids by role).
        facts: what its stage had to say of it.
    """

    folder: Path
    recipe: dict[str, Any]
    facts: dict[str, Any]

    def input(self, role: str, stage: str) -> "Made | None":
        """What it was made from in this role, where that lies under the same root."""
        folder = self.folder.parents[1] / stage / self.recipe["inputs"][role]
        return find_artifact(str(folder)) if (folder / "artifact.json").exists() else None


@dataclass(frozen=True)
class Model:
    """A weights file of ours, and what identifies it."""

    weights: Path
    checksum: str


def place(text: str) -> Path:
    """A path of the command line, absolute; a relative one lies in the current folder.

    Raises:
        UserError: a relative one inside a submitted job, whose current folder is a passing copy.
    """
    path = Path(text).expanduser()
    if inside_job() and not path.is_absolute():
        raise UserError(f"{text}: relative path inside a submitted job, whose folder is a passing copy; give it whole")
    return path.absolute()


def output_file(text: str, option: str, suffixes: tuple[str, ...]) -> Path:
    """A file to be written, checked before the work for it begins.

    Raises:
        UserError: another suffix, or no folder to hold it.
    """
    path = place(text)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {text}: name it {' or '.join(f'*{suffix}' for suffix in suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {text}: there is no folder {path.parent}; make it first")
    return path


def find_artifact(text: str) -> Made:
    """An artifact by its folder, or by `stage/id` under the output root.

    Raises:
        UserError: there is none, or it is not complete.
    """
    folder = place(text)
    if not folder.exists() and (output_root() / text).exists():
        folder = output_root() / text
    if not folder.is_dir():
        raise UserError(f"{text}: no artifact there, and no {text} in the output root {output_root()}")
    try:
        content = json.loads((folder / "artifact.json").read_text())
        return Made(folder, content["recipe"], content["facts"])
    except FileNotFoundError:
        raise UserError(f"{folder}: no artifact.json in it: no artifact, or one that is not complete") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'artifact.json'} cannot be read ({error!r})") from None


def find_model(text: str) -> Model:
    """A model: a weights file of ours, or an artifact that holds one (see `find_artifact`).

    Raises:
        UserError: there is none, or it is of another origin and must be converted first.
    """
    path = place(text)
    if not path.is_file():
        made = find_artifact(text)
        if made.recipe["stage"] not in MODELS:
            raise UserError(f"{text} is of stage {made.recipe['stage']}; a model is of {', '.join(MODELS)}")
        path = weights_of(made.folder)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: a model is an artifact or a .safetensors file of rayreid; other weights become one by "
            "rayreid weights convert FILE --to safetensors"
        )
    read_header(path)
    return Model(path, checksum(path))


def open_images(text: str, dataset: str = "folder") -> ImageStore | ListedImages:
    """An image store, or a dataset's images where they lie.

    Args:
        text: a folder; with `index.parquet` in it, a store, whatever `dataset` says.
        dataset: how the images are found and labelled otherwise, a name in `rayreid.data.datasets`.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    path = place(text)
    if (path / "index.parquet").is_file():
        return ImageStore(path)
    if not path.exists():
        raise UserError(f"{text}: there is no such folder of images or image store")
    return ListedImages(open_dataset(dataset, str(path)))


def rows_of(images: ImageStore | ListedImages, split: str | None) -> np.ndarray:
    """Return the index rows of a split, int64 ascending; of all images without one."""
    return np.arange(len(images)) if split is None else np.flatnonzero(images.splits == split)
