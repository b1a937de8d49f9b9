import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.parquet import encode_table, write_table

TABLE = pa.table({"key": ["a", "b"], "priority": [0.5, 1.0]})


def test_a_table_comes_back_and_its_bytes_are_those_encoded(tmp_path):
    write_table(tmp_path / "t.parquet", TABLE)
    assert pq.read_table(tmp_path / "t.parquet").equals(TABLE)
    assert (tmp_path / "t.parquet").read_bytes() == encode_table(TABLE)


def test_a_write_that_fails_leaves_the_old_table(tmp_path, monkeypatch):
    write_table(tmp_path / "t.parquet", TABLE, "zstd")

    def fail(table, path, **options):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="no space"):
        write_table(tmp_path / "t.parquet", TABLE.slice(1))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    assert pq.read_table(tmp_path / "t.parquet").equals(TABLE)
