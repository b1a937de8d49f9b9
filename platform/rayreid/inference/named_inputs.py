"""Inputs and outputs that a user names on the command line: models, images, artifacts, files to write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayreid.data.datasets import open_dataset
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.files import checksum
from rayreid.models.backbones import build_backbone
from rayreid.models.report import LoadReport
from rayreid.models.weights import check_weights, read_header, weights_of
from rayreid.paths import expanded, inside_job, output_root
from rayreid.storage.contents import RECORD, read_record

MODELS = ("finetune", "adapt", "pretrain", "proxy", "given")
"""Stages whose artifacts contain a network."""

PUBLISHED = "model.safetensors"
"""The weights file in a folder that `rayreid publish` wrote."""


@dataclass(frozen=True)
class Made:
    """A complete artifact, found by its folder.

    Attributes:
        folder: The artifact's folder.
        recipe: How it was made: `stage`, `fields`, and `inputs` (ids by role).
        facts: The facts that its stage recorded.
    """

    folder: Path
    recipe: Mapping[str, Any]
    facts: dict[str, Any]

    def input(self, role: str, stage: str) -> "Made | None":
        """Return the input artifact in this role; None if it is not under the same root."""
        folder = self.folder.parents[1] / stage / self.recipe["inputs"][role]
        return find_artifact(str(folder)) if (folder / RECORD).exists() else None


@dataclass(frozen=True)
class ModelFile:
    """A weights file in rayreid's own format.

    Attributes:
        weights: The file.
        checksum: Its checksum.
        strict: Whether all of it must fit the network that its header states; else what fits is loaded.
    """

    weights: Path
    checksum: str
    strict: bool = True

    def report(self) -> LoadReport:
        """Return which of the file's tensors are loaded, or raise the UserError of loading them."""
        with torch.device("meta"):
            backbone = build_backbone(**read_header(self.weights)["backbone"])
        return check_weights(backbone, self.weights, self.strict)


def place(text: str) -> Path:
    """Return a path from the command line as an absolute path; a relative path begins at the current folder.

    Raises:
        UserError: The path is empty, or relative inside a submitted job, whose current folder is a temporary copy.
    """
    if not text.strip():
        raise UserError("a path is empty, perhaps that of a variable that is not set; name the file or folder")
    path = expanded(text)
    if inside_job() and not path.is_absolute():
        raise UserError(
            f"{text}: relative path inside a submitted job, whose folder is a temporary copy; make it absolute"
        )
    return path.absolute()


def output_file(text: str, option: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a file to write, checked before the work for it begins.

    Raises:
        UserError: The suffix is not one of `suffixes`, or the parent folder does not exist.
    """
    path = place(text)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {text}: name it {' or '.join(f'*{suffix}' for suffix in suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {text}: there is no folder {path.parent}; make it first")
    return path


def find_artifact(text: str) -> Made:
    """Return an artifact by its folder, or by `stage/id` under the output root.

    Raises:
        UserError: The artifact does not exist, is not complete, or is damaged.
    """
    folder = place(text)
    if not folder.exists() and (output_root() / text).exists():
        folder = output_root() / text
    if not folder.is_dir():
        raise UserError(f"{text}: no artifact there, and no {text} in the output root {output_root()}")
    try:
        record = read_record(folder)
        return Made(folder, record.recipe, record.facts)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {RECORD} in it; it is not an artifact, or is not complete") from None


def find_model(text: str, strict: bool = True) -> ModelFile:
    """Return a model: a weights file in our format, or the one in an artifact (see `find_artifact`).

    Args:
        text: A file, an artifact's folder, `stage/id`, or a folder that `rayreid publish` wrote.
        strict: Whether all of the file must fit the network that its header states.

    Raises:
        UserError: The model does not exist, or has another format and must be converted first.
    """
    path = place(text)
    if (path / PUBLISHED).is_file() and not (path / RECORD).exists():
        path = path / PUBLISHED
    if not path.is_file():
        made = find_artifact(text)
        if made.recipe["stage"] not in MODELS:
            raise UserError(f"{text} is of stage {made.recipe['stage']}; models come from {', '.join(MODELS)}")
        path = weights_of(made.folder)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: a model is an artifact or a .safetensors file of rayreid; convert other weights with "
            "rayreid weights convert FILE --to safetensors"
        )
    read_header(path)
    return ModelFile(path, checksum(path), strict)


def open_images(text: str, dataset: str = "folder") -> ImageStore | ListedImages:
    """Open an image store, or list the images of a dataset in place.

    Args:
        text: A folder. If it contains `index.parquet` it is an image store, whatever `dataset` says.
        dataset: How the images of another folder are found and labelled: a name in `rayreid.data.datasets`.

    Raises:
        UserError: The folder does not exist, or has no image.
    """
    path = place(text)
    if (path / "index.parquet").is_file():
        return ImageStore(path)
    if not path.exists():
        raise UserError(f"{text}: there is no such image folder or image store")
    return ListedImages(open_dataset(dataset, str(path)))


def rows_of(images: ImageStore | ListedImages, split: str | None) -> np.ndarray:
    """Return the index rows of a split (None: of all images), int64 ascending."""
    return np.arange(len(images)) if split is None else np.flatnonzero(images.splits == split)
