"""Report on a sweep, as a Ray job.

`ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/report.py experiments/X.yaml`
"""

import sys
from pathlib import Path

# In place of this folder, whose `select.py` would shadow the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent / "platform")

from rayreid.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
