"""Evidence from one GPU: a random half against a CFS half of the real pool, one seed a call, into a ledger.

    source .gpu-host/a/setup.sh     # where Ray, MLflow and the images were brought over
    python3 benchmarks/gpu_evidence.py --seed 0 --out $OUT

It runs experiments/evidence/gpu.yaml like `rayreid run`, one row after another. As soon as a row is finished, its line
is in `ledger.csv` below `--out`, and beside it the journals of all trainings so far: a call that is cut off loses only
what was unfinished. `--toy` tries the script on a CPU, on drawn pedestrians.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from rayreid.config import Experiment
from rayreid.config.loading import load_experiment
from rayreid.pipeline.experiment_runner import run
from rayreid.pipeline.ledger import enter

FILE = Path(__file__).parent.parent / "experiments/evidence/gpu.yaml"
GPU = ("resources.gpu=true", "resources.workers=1")
TOY = (
    "pool={dataset: synthetic, options: {part: pool, images: 64, size: [32, 16]}}",
    "target={dataset: synthetic, options: {part: target, size: [32, 16], identities: 8, test_identities: 8}}",
    "backbone={name: vit_tiny, depth: 1, img_size: [32, 16]}",
    "pretrain={epochs: 1, batch_size: 8, out_dim: 64, hidden_dim: 32, local_crops: 1, probe_every: 0}",
    "finetune={epochs: 1, identities: 4, padding: 2}",
    "proxy={pretrain: {epochs: 1, batch_size: 8}, finetune: {epochs: 1}}",
)


def experiment_of(seed: int, toy: bool) -> Experiment:
    """The experiment with one seed, which its proxies have too."""
    return load_experiment(FILE, [*(TOY if toy else GPU), f"seed={seed}"])


def keep(root: Path, out: Path) -> None:
    """Copy the journals of the trainings so far."""
    for journal in root.glob("*/*/metrics.jsonl"):
        place = out / journal.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(journal, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("gpu-evidence"), help="folder of the ledger and the journals")
    parser.add_argument("--toy", action="store_true", help="a tiny network on drawn images, to try the script on a CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    experiment = experiment_of(args.seed, args.toy)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(os.environ.setdefault("RAYREID_ROOT", scratch))
        for count in range(1, len(experiment.compare) + 1):
            done = experiment.model_copy(update={"compare": experiment.compare[:count]})
            run(done)
            entered = enter(done, str(args.out / "ledger.csv"), note=f"gpu_evidence.py, seed {args.seed}")
            print(f"{entered.path}: {entered.added} added")
            keep(root, args.out)


if __name__ == "__main__":
    main()
