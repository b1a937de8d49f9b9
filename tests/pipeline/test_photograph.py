"""A folder of crops with a photograph of twelve megapixels among them, through the whole method on Ray."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from rayreid.config.loading import load_experiment, rows
from rayreid.pipeline.experiment_runner import run
from rayreid.pipeline.graph import plan
from tiny_experiment import TINY

pytestmark = pytest.mark.ray


def test_it_is_ingested_scored_and_trained_on(root, shared_ray, tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    rng = np.random.default_rng(0)
    for number in range(64):
        size = (4000, 3000) if number == 7 else (32, 64)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BILINEAR).save(pool / f"{number:02d}.jpg")
    path = tmp_path / "photograph.yaml"
    shown = [{"label": "cfs half", "select.fraction": 0.5}]
    path.write_text(yaml.safe_dump({**TINY, "pool": {"dataset": "folder", "root": str(pool)}, "compare": shown}))
    experiment = load_experiment(path)
    (result,) = run(experiment)
    assert result.images == 32 and 0 <= result.scores["mAP"] <= 1
    scores = pq.read_table(plan(rows(experiment)["cfs half"], root)["scores"].path / "scores")
    assert "07.jpg" in scores["key"].to_pylist() and len(scores) == 64
