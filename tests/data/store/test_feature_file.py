"""Features as Parquet: what is written is read, and what is not ours is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.data.store.feature_file import FeatureTable, read_features, write_features
from rayreid.errors import UserError


def table(keys=("a.jpg", "b/ö.jpg", "c.jpg")) -> FeatureTable:
    return FeatureTable(
        np.array(keys, object),
        np.arange(3 * 4, dtype=np.float32).reshape(3, 4),
        np.array([3, -1, 5], np.int32),
        np.array([0, -1, 2], np.int16),
        np.array(["query", "gallery", "gallery"], object),
        {"weights": "abc", "model": "m.safetensors", "images": "/x", "dataset": "folder"},
    )


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "f.parquet"
    write_features(path, table())
    read = read_features(path)
    assert read.keys.tolist() == ["a.jpg", "b/ö.jpg", "c.jpg"] and read.splits.tolist() == table().splits.tolist()
    np.testing.assert_array_equal(read.features, table().features)
    assert read.pids.tolist() == [3, -1, 5] and read.camids.tolist() == [0, -1, 2]
    assert read.header["weights"] == "abc" and read.header["dimensions"] == 4
    schema = pq.read_schema(path)
    assert schema.names == ["key", "pid", "camid", "split", "feature"]
    assert schema.field("feature").type == pa.list_(pa.float32(), 4)


def test_a_part_keeps_rows_together():
    part = table().part(np.array([False, True, True]))
    assert len(part) == 2 and part.keys.tolist() == ["b/ö.jpg", "c.jpg"]
    assert part.features[0].tolist() == [4, 5, 6, 7] and part.pids.tolist() == [-1, 5]


def test_what_is_not_ours_is_refused(tmp_path):
    path = tmp_path / "f.parquet"
    with pytest.raises(UserError, match="no such file"):
        read_features(path)
    path.write_text("no parquet")
    with pytest.raises(UserError, match=r"f\.parquet"):
        read_features(path)
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(UserError, match="not written by rayreid predict"):
        read_features(path)
    write_features(path, table(("a.jpg", "a.jpg", "c.jpg")))
    with pytest.raises(UserError, match="more than once"):
        read_features(path)
    with pytest.raises(UserError, match="cannot be written"):
        write_features(tmp_path / "none" / "f.parquet", table())
