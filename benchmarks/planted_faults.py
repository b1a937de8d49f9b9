"""What curation finds of the faults that are planted in a drawn pool: precision and recall.

    rayreid selections experiments/evidence/curate.yaml seeds=[]
    python benchmarks/planted_faults.py experiments/evidence/curate.yaml seeds=[]

Near-duplicates: of each track, an image and its planted duplicates, one image should stay. Recall is the share of the
surplus that is removed, precision the share of what is removed that was surplus.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from rayreid.config.loading import change, load_experiment
from rayreid.data.store.store import ImageStore
from rayreid.paths import output_root
from rayreid.pipeline.graph import plan
from rayreid.selection.dedup import few_of_each, near_duplicates
from rayreid.selection.provenance import planted_of
from rayreid.selection.quality_rules import kept, parse_rules
from rayreid.stages.priority import bytes_and_sizes, features_in
from rayreid.stages.quality import read_quality

SIMILARITIES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
RULES = (
    {"sharpness": {"drop_lowest": 0.05}},
    {"sharpness": {"drop_lowest": 0.1}},
    {"sharpness": {"drop_lowest": 0.1}, "contrast": {"drop_lowest": 0.05}},
)
FAULTS = ("blurred", "uniform", "backdrop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.file, arguments.overrides)
    graph = {
        role: artifact
        for strategy in ("dedup", "quality")
        for role, artifact in plan(change(experiment.alone, {"select.strategy": strategy}), output_root()).items()
    }
    store = ImageStore(graph["pool"].path)
    rows = {key: row for row, key in enumerate(store.keys)}
    kinds, tracks = np.full(len(store), "", object), np.arange(len(store))
    for key, kind, source in planted_of(experiment.pool).to_pandas().itertuples(index=False):
        kinds[rows[key]] = kind
        tracks[rows[key]] = rows[source] if source else rows[key]
    near(store, graph["features"].path, tracks)
    faulty(read_quality(graph["quality"].path), kinds)


def near(store: ImageStore, features: Path, tracks: np.ndarray) -> None:
    """Print what the strategy `dedup` removes at several thresholds, with and without centring."""
    pool, known = features_in(features, store.directory, "all"), bytes_and_sizes(store)
    _, track = np.unique(tracks, return_inverse=True)
    surplus = len(store) - len(np.unique(tracks))
    print(f"{len(store):,} images, {surplus:,} of them planted duplicates")
    print("| centred | similarity | groups | removed | precision | recall | tracks of which none is left |")
    print("|---|---|---|---|---|---|---|")
    for centre in (False, True):
        for similarity in SIMILARITIES:
            groups, facts = near_duplicates(pool, torch.device("cpu"), 0, similarity=similarity, centre=centre, **known)
            priority, _ = few_of_each(store.keys, groups, keep=1, seed=0, **known)
            left = np.bincount(track, weights=~np.isnan(priority))
            removed = int(np.isnan(priority).sum())
            right = surplus - int(np.maximum(left - 1, 0).sum())
            print(
                f"| {'yes' if centre else 'no'} | {similarity} | {facts['groups']:,} | {removed:,} | "
                f"{right / max(1, removed):.3f} | {right / surplus:.3f} | {(left == 0).mean():.1%} |"
            )


def faulty(table, kinds: np.ndarray) -> None:
    """Print what rules of the strategy `quality` remove of each kind of fault."""
    faults = np.isin(kinds, FAULTS)
    print(f"| rules | removed | precision | {' | '.join(f'recall: {kind}' for kind in FAULTS)} |")
    print(f"|---|---|---|{'---|' * len(FAULTS)}")
    for rules in RULES:
        removed = ~kept(table, parse_rules(rules))
        recalls = " | ".join(f"{removed[kinds == kind].mean():.3f}" for kind in FAULTS)
        print(f"| `{rules}` | {removed.sum():,} | {(removed & faults).sum() / removed.sum():.3f} | {recalls} |")


if __name__ == "__main__":
    main()
