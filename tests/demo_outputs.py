"""The outputs of the demo on which tests run: those that RAYREID_DEMO_ROOT names, or else a tiny experiment's."""

import os
from pathlib import Path
from typing import Any

import yaml

from tiny_experiment import TINY

DEMO = Path(__file__).parent.parent / "experiments" / "demo.yaml"
ROWS = [{"label": "no pre-training", "pretrain": "none"}, {"label": "random half", "select.strategy": "random"}]


def demo_outputs(folder: Path, file: Path) -> Path:
    """Write the experiment file whose outputs are used; return their root.

    Args:
        folder: A new output root, for the tiny experiment.
        file: The file to write. It changes the demo by the overrides in RAYREID_DEMO with which `make demo` ran.
    """
    root = os.environ.get("RAYREID_DEMO_ROOT")
    if not root:
        file.write_text(yaml.safe_dump({**TINY, "compare": ROWS}))
        return folder
    changes: dict[str, Any] = {}
    for override in os.environ.get("RAYREID_DEMO", "").split():
        key, _, value = override.partition("=")
        *sections, field = key.split(".")
        section = changes
        for name in sections:
            section = section.setdefault(name, {})
        section[field] = yaml.safe_load(value)
    file.write_text(yaml.safe_dump({"extends": str(DEMO), **changes}))
    return Path(root)
