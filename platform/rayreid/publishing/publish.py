"""Publishing a trained model as a folder: weights, configuration for timm, ONNX model and model card."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

from rayreid.console import Screen
from rayreid.errors import UserError, escaped
from rayreid.files import TEMPORARY, naming, sync_file, sync_folder
from rayreid.inference.named_inputs import PUBLISHED, Made, find_artifact, find_model, place
from rayreid.models.onnx_export import export_onnx, require_onnx
from rayreid.models.weights import save_backbone, weights_of
from rayreid.publishing.card import CARD, Card
from rayreid.publishing.licences import licence_named
from rayreid.publishing.measurements import measurements_of
from rayreid.publishing.origin import Lineage
from rayreid.publishing.publication import Publication, read_publication
from rayreid.publishing.timm_config import CONFIG, check_timm, timm_config
from rayreid.storage.contents import RECORD

ONNX = "model.onnx"
FILES = (PUBLISHED, CONFIG, ONNX, CARD)
"""Everything that a published folder may contain; the card is written last."""


def publish(
    model: str,
    folder: str,
    licence: str,
    name: str | None = None,
    onnx: bool = True,
    force: bool = False,
    screen: Screen | None = None,
) -> Path:
    """Write a model as a folder that model hubs, timm, onnxruntime and rayreid read.

    Args:
        model: A weights file of rayreid, an artifact's folder, or `stage/id`.
        folder: The folder to write; it is made. A link to a folder stands for that folder. Nothing is written before
            all files have been made and checked.
        licence: The licence of the weights, as model hubs name it, e.g. `mit`, `cc-by-nc-4.0`, `other`.
        name: The model's name in its card (default: that of the folder).
        onnx: Whether to write an ONNX model, too, which needs the packages of the extra `onnx`.
        force: Whether to write into a folder that holds other files, and replace those of an earlier publication.
        screen: Shows what was written.

    Returns:
        The folder.

    Raises:
        UserError: There is no such model, it is damaged, the folder is not empty or cannot be written to, the
            licence is not one that model hubs know, or an exported model gives other features than the network.
    """
    screen = screen or Screen()
    named = place(folder)
    target = _target_of(named, force)
    licence = licence_named(licence)
    if onnx:
        try:
            require_onnx()
        except UserError as error:
            raise UserError(f"{error}, or publish without it: --no-onnx") from None
    file = find_model(model).weights
    made = _made(file)
    lineage = Lineage(made) if made is not None else None
    published = read_publication(file)
    card = Card(
        name=_one_line(name or named.name or target.name),
        licence=licence,
        publication=published,
        onnx=ONNX if onnx else None,
        trainings=lineage.trainings() if lineage else [],
        datasets=lineage.datasets() if lineage else [],
        missing=lineage.missing() if lineage else [],
        measurements=measurements_of(lineage) if lineage else [],
    )
    with _all_or_nothing(target) as staging:
        _write(staging, published, card, onnx)
    screen.say(f"published: {escape(str(named))}")
    for line in card.summary():
        screen.say(f"  {escape(line)}")
    return named


def _write(folder: Path, published: Publication, card: Card, onnx: bool) -> None:
    facts = {key: value for key, value in published.header.items() if key not in ("mean", "std")}
    mean, std = published.header["mean"], published.header["std"]
    save_backbone(folder / PUBLISHED, published.backbone, mean, std, neck=published.neck, **facts)
    config = None if published.lacking else timm_config(published.backbone, published.header)
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        check_timm(folder, published.backbone)
    if onnx:
        export_onnx(published.network, folder / ONNX, {"mean": mean, "std": std})
    (folder / CARD).write_text(card.text(), encoding="utf-8")


def _made(file: Path) -> Made | None:
    """Return the artifact of which a file is the model; None if it is none, or of the epoch that scored best."""
    if not (file.parent / RECORD).exists() or weights_of(file.parent) != file:
        return None
    return find_artifact(str(file.parent))


def _target_of(named: Path, force: bool) -> Path:
    """Return the folder to write, behind links, checked before the work for it begins."""
    if named.is_symlink() and not named.exists():
        raise UserError(f"{named}: this link leads to nothing; make its folder first, or name another one")
    target = named.resolve()
    _check_target(target, force)
    return target


def _check_target(target: Path, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: there is a file at this path; name a folder")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; make it first")
    if (target / RECORD).exists():
        raise UserError(f"{target}: this is an artifact; name another folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UserError(
            f"{target}: this folder is not empty; name another one, or --force to replace {', '.join(FILES)} in it"
        )
    for name in FILES:
        if (target / name).is_dir() and not (target / name).is_symlink():
            raise UserError(f"{target / name}: this is a folder, and a file of this name is published; move it away")


@contextlib.contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; its files come into the target when the block succeeds.

    A new folder gets all of them at once. In an existing one, for example a clone of a repository, the files of an
    earlier publication are replaced one by one. It may be a mount point, so it is not replaced itself, and the
    temporary folder lies inside it, on the same file system.
    """
    exists = target.is_dir()
    parent = target if exists else target.parent
    staging = parent / f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}"
    with naming(target):
        staging.mkdir()
        try:
            yield staging
            for path in staging.iterdir():
                sync_file(path)
            sync_folder(staging)
            if exists:
                _replace(staging, target)
            else:
                staging.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, target: Path) -> None:
    """Replace the published files: the old card goes first and the new one comes last, so none describes others."""
    (target / CARD).unlink(missing_ok=True)
    sync_folder(target)
    for name in FILES:
        if (staging / name).exists():
            (staging / name).replace(target / name)
        else:
            (target / name).unlink(missing_ok=True)
    sync_folder(target)


def _one_line(text: str) -> str:
    return " ".join(escaped(text).split())
