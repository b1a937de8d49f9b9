"""A model that the user has, as an artifact: to evaluate what was trained elsewhere beside what is trained here."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from rayreid.config import Backbone, Checkpoint
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.files import checksum, replacing
from rayreid.models import hub
from rayreid.models.checkpoints import read_header_text
from rayreid.models.weights import read_header
from rayreid.paths import data_path
from rayreid.stages import finetune, proxies
from rayreid.storage.artifacts import Artifact

VERSION = 1


def plan(root: Path, checkpoint: Checkpoint, backbone: Backbone) -> Artifact:
    """A model from a weights file: one of ours as it is, its neck included; another's as `backbone` describes it.

    Raises:
        UserError: there is no such file, or it does not fit.
    """
    path = None if hub.is_name(checkpoint.weights) else data_path(checkpoint.weights)
    if path is not None and not path.is_file():
        raise UserError(f"{path}: no such weights file (matrix.models)")
    if path is None or path.suffix != ".safetensors" or not read_header_text(path):
        proxies.check(backbone, {"matrix.models": checkpoint})
        return proxies.plan_adoption(root, "target", checkpoint, backbone)
    read_header(path)
    return Artifact(root, "given", VERSION, {"checksum": checksum(path)}, job=partial(_copy, path))


def _copy(path: Path, context: StageContext) -> dict[str, Any]:
    with replacing(context.folder / finetune.WEIGHTS) as temporary:
        shutil.copyfile(path, temporary)
    context.run.params({"file": path})
    return {"file": str(path), "backbone": read_header(path)["backbone"]["name"]}
