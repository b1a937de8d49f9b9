"""A model with its history, put down as the stages would: two seeds of a fine-tuning after a pre-training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayreid.models.backbones import build_backbone
from rayreid.models.weights import save_backbone
from rayreid.storage.artifacts import Artifact
from small_store import small_store

HALF = (0.5, 0.5, 0.5)
SMALL = {"name": "vit_tiny", "img_size": (64, 32), "depth": 1}
TRAINED = {"images": 12, "steps": 9, "workers": 1, "machine": "CPU, 2 cores", "gpu_hours": 0.5, "git_sha": "c0ffee"}


def save(path: Path, neck=None, bnneck=None, seed=0, **spec):
    """Write weights whose header names a place, as those of other tools may."""
    torch.manual_seed(seed)
    backbone = build_backbone(**{**SMALL, **spec})
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    facts = {"method": "supervised", "epochs": 2, "source": "/home/somebody/pool", "artifact": "finetune/0"}
    save_backbone(path, backbone, HALF, HALF, neck=neck, bnneck=bnneck, **facts)
    return path


def complete(artifact: Artifact, facts):
    artifact.path.mkdir(parents=True, exist_ok=True)
    artifact.finish(facts)
    return artifact


def ingested(root: Path, name: str) -> Artifact:
    source = {"dataset": "folder", "root": f"/home/somebody/{name}"}
    store = Artifact(root, "ingest", 3, {"source": source})
    opened = small_store(store.path)
    facts = {"dataset": f"{name} V1", "images": len(opened), "fingerprint": opened.fingerprint}
    store.finish(facts)
    return store


def history(root: Path, mAPs=(0.25, 0.5)) -> list[Artifact]:
    """Return the models of a row, one per seed, each evaluated with one of the mAPs on four queries."""
    pool, target = ingested(root, "mine"), ingested(root, "market1501")
    select = {"select": {"strategy": "list", "file": "/home/somebody/list.txt", "fraction": 0.5}}
    subset = complete(Artifact(root, "select", 1, select, {"pool": pool}), {})
    models = []
    for seed, mAP in enumerate(mAPs):
        fields = {"pretrain": {"method": "dino", "epochs": 1}, "backbone": SMALL, "seed": seed, "start": None}
        pretrain = Artifact(root, "pretrain", 1, fields, {"pool": pool, "subset": subset})
        complete(pretrain, TRAINED)
        fields = {"finetune": {"epochs": 2}, "backbone": SMALL, "seed": seed, "start": None}
        model = Artifact(root, "finetune", 2, fields, {"target": target, "weights": pretrain})
        model.path.mkdir(parents=True)
        save(model.path / "model.safetensors", seed=seed)
        complete(model, {**TRAINED, "start": {"source": str(pretrain.path)}})
        evaluated(root, target, model, mAP)
        models.append(model)
    return models


def evaluated(root: Path, target: Artifact, model: Artifact, mAP: float, **config) -> Artifact:
    metrics = Artifact(
        root, "evaluate", 1, {"evaluate": {"max_rank": 50, **config}}, {"target": target, "model": model}
    )
    metrics.path.mkdir(parents=True)
    precision = mAP + np.array([-0.1, 0.1, -0.05, 0.05])
    table = pa.table({"key": list("abcd"), "average_precision": precision, "first_match": [1, 2, 3, 4]})
    pq.write_table(table, metrics.path / "queries.parquet")
    scores = {"mAP": mAP, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mINP": 0.125}
    return complete(metrics, {**scores, "queries": 4, "gallery": 9})
