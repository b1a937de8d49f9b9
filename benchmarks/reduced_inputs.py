"""What the reduced tables of experiments/paper read: a small part of real images, and weights that nobody trained.

    RAYREID_DATA=/the/images python benchmarks/reduced_inputs.py FOLDER
    RAYREID_DATA=FOLDER rayreid run experiments/paper/table_1_reduced.yaml

`RAYREID_DATA` holds what experiments/market1501_resplit.yaml reads. FOLDER then holds a link to it, two tables of
images for the dataset `table`, and under weights/ a file in place of every checkpoint that table_1.yaml names: networks
as timm draws them, in the form in which each of these checkpoints comes. Nothing is downloaded.
"""

import argparse
import csv
import os
from collections.abc import Iterable
from pathlib import Path

import timm
import torch

from rayreid.data.datasets.folder import Folder
from rayreid.data.datasets.market1501 import Market1501
from rayreid.data.store.store import Record
from rayreid.diagnostics.convert_weights import convert_weights

POOL, TARGET = "unlabelled-pool", "market1501-resplit"
IMAGES = "images"
PERSONS = {"train": 12, "query": 8}
PER_CAMERA = 2
VIT = {"model_name": "vit_tiny_patch16_224", "depth": 2}
State = dict[str, torch.Tensor]


def spread(records: Iterable[Record], count: int) -> list[Record]:
    """`count` of them, at equal distances."""
    listed = sorted(records, key=lambda record: record.key)
    return [listed[number * len(listed) // count] for number in range(count)]


def persons(records: Iterable[Record]) -> list[Record]:
    """Of the first identities of either half, `PER_CAMERA` images by each camera; of a query its one."""
    listed = list(records)
    train, test = (sorted({r.pid for r in listed if r.split == split})[:count] for split, count in PERSONS.items())
    taken: dict[tuple[str, int, int], int] = {}
    chosen = []
    for record in listed:
        place = (record.split, record.pid, record.camid)
        if record.pid in {*train, *test} and taken.setdefault(place, 0) < PER_CAMERA:
            taken[place] += 1
            chosen.append(record)
    return chosen


def write_table(path: Path, records: Iterable[Record], root: Path) -> None:
    """A table for the dataset `table`: paths below `IMAGES`, keys as the whole dataset has them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "pid", "camid", "split", "key"])
        for r in records:
            writer.writerow([Path(r.path).relative_to(root).as_posix(), r.pid, r.camid, r.split, r.key])


def drawn(**model: object) -> State:
    """The backbone of timm's model as it is before any training."""
    torch.manual_seed(0)
    return dict(timm.create_model(**model, pretrained=False, num_classes=0).state_dict())


def under(prefix: str, state: State) -> State:
    """With that before every name."""
    return {prefix + name: value for name, value in state.items()}


def of_swin_s_authors(state: State) -> State:
    """They end a stage with what timm begins the next one with."""
    parts = {name: name.split(".") for name in state}
    steps = {name: int(part[1]) - 1 for name, part in parts.items() if part[2:3] == ["downsample"]}
    return {
        ".".join(["layers", str(steps[name]), *parts[name][2:]]) if name in steps else name: value
        for name, value in state.items()
    }


def write_weights(folder: Path) -> None:
    """One file for every row of table_1.yaml that starts from ImageNet."""
    folder.mkdir(exist_ok=True)
    networks = {
        "resnet50": drawn(model_name="resnet50"),
        "vit": drawn(**VIT),
        "swin_tiny": drawn(model_name="swin_tiny_patch4_window7_224"),
    }
    for name, state in networks.items():
        raw = folder / f"{name}.pth"
        torch.save(state, raw)
        convert_weights(str(raw), "safetensors", str(folder / f"{name}.safetensors"), mean=MEAN, std=STD, force=True)
        raw.unlink()
    resnet, vit, swin = networks["resnet50"], networks["vit"], of_swin_s_authors(networks["swin_tiny"])
    foreign = {
        "mocov2_resnet50.pth": {"state_dict": under("module.encoder_q.", resnet)},
        "mocov3_vit.pth": {"state_dict": under("module.base_encoder.", vit)},
        "dino_vit.pth": {"teacher": under("backbone.", vit)},
        "moby_swin_tiny.pth": {"model": {**under("encoder.", swin), **under("encoder_k.", swin)}},
    }
    for name, content in foreign.items():
        torch.save(content, folder / name)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pool", type=int, default=160, help="images of the pool")
    arguments = parser.parse_args()
    images = Path(os.environ["RAYREID_DATA"]).resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    link = arguments.folder / IMAGES
    if not link.is_symlink():
        link.symlink_to(images, target_is_directory=True)
    write_table(arguments.folder / "pool.csv", spread(Folder(images / POOL).records(), arguments.pool), images)
    write_table(arguments.folder / "target.csv", persons(Market1501(images / TARGET).records()), images)
    write_weights(arguments.folder / "weights")
