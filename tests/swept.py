"""A process of its own that runs a sweep, to be killed: `python swept.py FILE`."""

import sys

from rayreid.config.loading import load_experiment
from rayreid.sweeps.sweep_runner import sweep

if __name__ == "__main__":
    sweep(load_experiment(sys.argv[1]))
