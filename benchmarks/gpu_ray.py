"""Scoring and a pre-training on one GPU as the platform runs them: Ray Data with one actor, Ray Train with one worker.

It complements `gpu.py`, which measures the same work without Ray. Needs Ray, MLflow and pydantic. Each of the two parts
is printed, and appended to `--out`, as soon as it is measured. `--toy` tries the script on a CPU.
"""

import argparse
import json
import os
import tempfile
import time
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


def pretrain(root: Path, args: argparse.Namespace) -> dict[str, float]:
    """Pre-train on the store by the command's own path, and return the pace of the last half of its steps."""
    os.environ |= {"RAYREID_ROOT": str(root / "outputs"), "RAYREID_DATA": str(root)}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    from rayreid.config.loading import load_experiment
    from rayreid.pipeline.experiment_runner import run_stage

    batch = 8 if args.toy else 256
    steps = args.images // batch
    experiment = {
        "name": "gpu-ray",
        "pool": {"dataset": "store", "root": "store"},
        # A target is part of every experiment; this one is never trained on.
        "target": {"dataset": "synthetic", "options": {"part": "target"}},
        "backbone": {"name": args.backbone, "stem": args.stem, "img_size": list(args.input)},
        "pretrain": {
            "method": "dino",
            "epochs": max(1, round(args.steps / steps)),
            "batch_size": batch,
            "warmup_epochs": 0,
            "probe_every": 0,
            **({"out_dim": 64, "local_crops": 1} if args.toy else {}),
        },
        "select": {"fraction": 1.0},
        "resources": {"gpu": not args.toy, "workers": 1},
    }
    file = root / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment))
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
    parts: dict[str, Any] = {"pretrain": pretrain, "score": score}
    with tempfile.TemporaryDirectory() as scratch, args.out.open("a") as out:
        root = Path(scratch)
        make_store(root / "store", args.images, random_jpegs(64, *SIZE))
        write_proxies(root, args.backbone, tuple(args.input))
        for name, part in parts.items():
            values = {"row": f"ray_{name}", **part(root, args)}
            out.write(json.dumps({"device": device, "torch": torch.__version__, **values}) + "\n")
            out.flush()
            print("  ".join(f"{k}={v:,.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()))


if __name__ == "__main__":
    main()
