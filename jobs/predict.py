"""Compute features of images with a trained model, as a Ray job.

`ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/predict.py ARGUMENTS`
"""

import sys
from pathlib import Path

# In place of this folder, whose `select.py` would shadow the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent / "platform")

from rayreid.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
