"""Scoring and a pre-training on one GPU as the platform runs them: Ray Data with one actor, Ray Train with one worker.

It complements `gpu.py`, which measures the same work without Ray. Needs Ray, MLflow and pydantic. Each of the two parts
is printed, and appended to `--out`, as soon as it is measured; one that fails does not keep the other from being
measured, and the script ends with status 1. `--toy` tries the script on a CPU.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from pictures import random_jpegs
from scoring import measured, write_proxies
from store_access import make_store

from rayreid.models.embedding import AUTO_BATCH

SIZE = (256, 128)


def experiment_of(args: argparse.Namespace) -> dict[str, Any]:
    """A pre-training of about `args.steps` steps on the store."""
    batch = 8 if args.toy else 256
    return {
        "name": "gpu-ray",
        "pool": {"dataset": "store", "root": "store"},
        # A target is part of every experiment. This one is never trained on, only drawn.
        "target": {
            "dataset": "synthetic",
            "options": {"part": "target", "size": [32, 16], "identities": 16, "test_identities": 4},
        },
        "backbone": {"name": args.backbone, "stem": args.stem, "img_size": list(args.input)},
        "pretrain": {
            "method": "dino",
            "epochs": max(1, round(args.steps / (args.images // batch))),
            "batch_size": batch,
            "warmup_epochs": 0,
            "probe_every": 0,
            **({"out_dim": 64, "local_crops": 1} if args.toy else {}),
        },
        "select": {"fraction": 1.0},
        "resources": {"gpu": not args.toy, "workers": 1},
    }


def pretrain(root: Path, args: argparse.Namespace) -> dict[str, float]:
    """Pre-train on the store by the command's own path, and return the pace of the last half of its steps."""
    os.environ |= {"RAYREID_ROOT": str(root / "outputs"), "RAYREID_DATA": str(root)}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    from rayreid.config.loading import load_experiment
    from rayreid.pipeline.experiment_runner import run_stage

    file = root / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment_of(args)))
    began = time.time()
    (artifact,) = run_stage(load_experiment(file), "pretrain")
    rows = [json.loads(line) for line in (artifact.path / "metrics.jsonl").read_text().splitlines()]
    paced = [row for row in rows if "images_per_second" in row]
    late = paced[len(paced) // 2 :]
    return {
        "images_s": median(row["images_per_second"] for row in late),
        "wait": median(row["wait"] for row in late),
        "to_first_logged_step_s": paced[0]["time"] - began,
        "steps": float(rows[-1]["step"] + 1),
    }


def score(root: Path, args: argparse.Namespace) -> dict[str, float]:
    """Score the store by Ray Data, in a process of its own, which `scoring.py` defines."""
    device = "cpu" if args.toy else "cuda"
    options = {
        "--images": [args.images],
        "--backbone": [args.backbone],
        "--input": args.input,
        "--precision": ["auto"],
        "--batch": [8 if args.toy else AUTO_BATCH[device]],
        "--item": [16 if args.toy else 1024],
        "--cpus": [os.cpu_count()],
    }
    facts = measured("pipeline", root, [str(word) for name, values in options.items() for word in (name, *values)])
    return {"images_s": facts["rate"], "start_s": facts["start"], "images": facts["images"]}


Part = Callable[[Path, argparse.Namespace], dict[str, float]]
PARTS: dict[str, Part] = {"pretrain": pretrain, "score": score}


def rows_of(parts: Mapping[str, Part], root: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each part, or its error."""
    for name, part in parts.items():
        try:
            values: dict[str, Any] = dict(part(root, args))
        except (Exception, SystemExit) as error:  # the latter is how `scoring.py` reports its process
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"[:300]}
        yield {"row": f"ray_{name}", **values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24_576, help="JPEGs of 256 x 128 in the store")
    parser.add_argument("--steps", type=int, default=300, help="of the pre-training, rounded to epochs")
    parser.add_argument("--stem", default="patchify")
    parser.add_argument("--out", type=Path, default=Path("gpu_ray.jsonl"), help="a line of JSON for each part")
    parser.add_argument("--toy", action="store_true", help="a tiny network on few images, to try the script on a CPU")
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument("--input", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=SIZE, help="of the ViT")
    args = parser.parse_args()
    if not args.toy and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: --toy tries the script on a CPU")
    device = "cpu" if args.toy else torch.cuda.get_device_name()
    faults = 0
    with tempfile.TemporaryDirectory() as scratch, args.out.open("a") as out:
        root = Path(scratch)
        make_store(root / "store", args.images, random_jpegs(64, *SIZE))
        write_proxies(root, args.backbone, tuple(args.input))
        for values in rows_of(PARTS, root, args):
            out.write(json.dumps({"device": device, "torch": torch.__version__, **values}) + "\n")
            out.flush()
            shown = "  ".join(f"{k}={v:,.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
            print(shown, flush=True)
            faults += "error" in values
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
