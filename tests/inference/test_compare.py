"""Two evaluations side by side: which queries gained and which lost."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rayreid.console import Screen
from rayreid.inference.compare import compare


@pytest.fixture
def evaluation(tmp_path):
    """Writes a complete evaluation of some queries, in any order of theirs; returns its folder."""

    def write(name: str, precision: dict[str, float]) -> Path:
        folder = tmp_path / "evaluate" / name
        folder.mkdir(parents=True)
        recipe = {"stage": "evaluate", "fields": {}, "inputs": {"target": "one"}}
        facts = dict.fromkeys(("rank1", "rank5", "rank10", "mINP"), 0.5)
        facts["mAP"] = float(np.nanmean(list(precision.values())))
        (folder / "artifact.json").write_text(json.dumps({"recipe": recipe, "facts": facts}))
        table = pa.table({"key": list(precision), "average_precision": pa.array(precision.values(), pa.float64())})
        pq.write_table(table, folder / "queries.parquet")
        np.save(folder / "cmc.npy", np.linspace(0.5, 1, 10))
        return folder

    return write


def test_the_queries_that_gained_and_lost_most_are_listed_with_both_values(evaluation, tmp_path):
    first = evaluation("first", {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.4, "e": np.nan})
    second = evaluation("second", {"e": np.nan, "d": 0.45, "c": 0.5, "b": 0.2, "a": 0.8})
    said = io.StringIO()
    picture = tmp_path / "c.png"
    compare(str(first), str(second), str(picture), extremes=2, screen=Screen(Console(file=said, width=200)))
    lines = [line.split() for line in said.getvalue().splitlines()]
    gained, lost = lines.index(["gained", "most"]), lines.index(["lost", "most"])
    assert lines[gained + 1 : lost] == [["10.0", "→", "80.0", "a"], ["40.0", "→", "45.0", "d"]]
    assert lines[lost + 1 : -1] == [["90.0", "→", "20.0", "b"]]
    assert "second is better on 2, worse on 1, equal on 1" in said.getvalue()
