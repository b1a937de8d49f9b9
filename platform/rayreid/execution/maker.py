"""What made an artifact: the command, the host and the versions, as `artifact.json` records them beside the commit."""

import platform
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rayreid import __version__
from rayreid.masking import masked_values
from rayreid.tracking.revision import SOURCE_TAGS
from rayreid.tracking.run import Run

_PACKAGES = ("torch", "torchvision", "timm", "ray", "mlflow", "numpy", "pyarrow")
"""Packages whose version may change a result, or tells why a run failed."""


def maker_of(run: Run) -> dict[str, Any]:
    """Return what makes the artifact of a stage's run, credentials masked.

    Args:
        run: The stage's MLflow run. It knows the command that began it, also in a process that Ray started for a trial.
    """
    made = {"command": run.source().get(SOURCE_TAGS[0]), "host": socket.gethostname(), "versions": versions()}
    return dict(masked_values({name: value for name, value in made.items() if value is not None}))


@cache
def versions() -> dict[str, str]:
    """Return the versions of rayreid, Python, CUDA and the packages of `_PACKAGES`; what is absent is left out."""
    found = {"rayreid": __version__, "python": platform.python_version()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
