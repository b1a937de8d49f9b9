"""A model of the user's own as an artifact, to compare models trained elsewhere with those trained here."""

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
    """Return the artifact of a user's weights file.

    A file in our format is copied with its neck; another file is adopted as `backbone` describes it.

    Raises:
        UserError: The file does not exist, or does not fit.
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
