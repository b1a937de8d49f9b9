import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.errors import UserError
from rayreid.parquet import encode_table, read_columns, write_table

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


def test_a_text_that_is_no_utf8_is_refused_when_it_is_read(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, [*pa.array(["a", "é"]).buffers()[:2], pa.py_buffer(b"a\xc2n")])
    write_table(tmp_path / "t.parquet", pa.table({"key": broken}))
    with pytest.raises(UserError, match=r"t\.parquet.*UTF"):
        read_columns(tmp_path / "t.parquet", {"key": pa.types.is_string})
