"""What the files in experiments/evidence read besides the images: a held-out split, and the lists of oracles.

    RAYREID_DATA=/the/images python benchmarks/evidence_inputs.py FOLDER
    RAYREID_DATA=FOLDER rayreid run experiments/evidence/real.yaml

`RAYREID_DATA` holds what experiments/market1501_resplit.yaml reads. FOLDER then holds links to it and

- `held-out.csv`, a table of images for the dataset `table`, on which settings can be chosen without the test images:
  every fifth identity of the train split is tested instead, with one query per identity and camera. No image of the
  splits query and gallery is in it;
- `oracle-real.txt`: the pool's images of the target's own domain, by their known origin, and `oracle-IMAGES-SHARE.txt`,
  the same for pools of drawn pedestrians. A list like this can only be had where the origins are known: it shows how
  much any selection could gain;
- `outsiders-IMAGES-SHARE.txt`: as many images of the same drawn pool, none of them of the target's domain.
"""

import argparse
import csv
import os
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from reduced_inputs import IMAGES, write_table

from rayreid.data.datasets import open_dataset
from rayreid.data.datasets.market1501 import Market1501
from rayreid.data.store.store import Record

TARGET, ORIGINS, OWN = "market1501-resplit", "unlabelled-pool-provenance.csv", "market1501"
DRAWN = [(images, share) for images in (1600, 6400) for share in (15, 50)]
"""Images of a drawn pool, and the percentage of them in the target's domain."""


def held_out(records: Iterable[Record], every: int) -> list[Record]:
    """The train split as train, query and gallery; every `every`-th identity is tested."""
    train = sorted((record for record in records if record.split == "train"), key=lambda record: record.key)
    tested = set(sorted({record.pid for record in train})[::every])
    asked: set[tuple[int, int]] = set()
    split = []
    for record in train:
        place = (record.pid, record.camid)
        if record.pid not in tested:
            split.append(record)
        elif place in asked:
            split.append(replace(record, split="gallery"))
        else:
            asked.add(place)
            split.append(replace(record, split="query"))
    return split


def own_domain(table: Path) -> list[str]:
    """The keys of the target's own domain in a table of origins."""
    with table.open(newline="") as file:
        return [row["key"] for row in csv.DictReader(file) if row["origin"] == OWN]


def drawn_domain(images: int, share: int) -> tuple[list[str], list[str]]:
    """The same of a drawn pool, and as many keys of others, if there are as many."""
    options = {"part": "pool", "images": images, "size": [64, 32], "cameras": 4, "relevant": share / 100}
    origins = open_dataset("synthetic", None, **options).origins()
    own = [key for key, origin in origins.items() if origin == "target_domain"]
    others = sorted(origins.keys() - own)
    return own, random.Random(0).sample(others, min(len(own), len(others)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=5, help="one in so many identities is held out")
    arguments = parser.parse_args()
    folder, images = arguments.folder, Path(os.environ["RAYREID_DATA"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in {IMAGES: images, **{entry.name: entry for entry in images.iterdir()}}.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(place)
    write_table(folder / "held-out.csv", held_out(Market1501(images / TARGET).records(), arguments.every), images)
    lists = {"oracle-real": own_domain(images / ORIGINS)}
    for count, share in DRAWN:
        lists[f"oracle-{count}-{share}"], lists[f"outsiders-{count}-{share}"] = drawn_domain(count, share)
    for name, keys in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(sorted(keys)) + "\n")
        print(f"{name}.txt: {len(keys):,} images")
