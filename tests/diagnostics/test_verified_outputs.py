import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rayreid.console import Screen
from rayreid.data.store.store import ImageStore
from rayreid.diagnostics.finding import Finding
from rayreid.diagnostics.verified_outputs import verified
from rayreid.storage import contents
from rayreid.storage.artifacts import Artifact
from small_store import small_store


@pytest.fixture
def made(tmp_path) -> Artifact:
    artifact = Artifact(tmp_path, "finetune", 1, {})
    artifact.path.mkdir(parents=True)
    (artifact.path / "model.safetensors").write_bytes(b"weights")
    artifact.finish({})
    return artifact


@pytest.fixture
def pool(tmp_path) -> Artifact:
    artifact = Artifact(tmp_path, "ingest", 1, {})
    small_store(artifact.path)
    artifact.finish({})
    return artifact


def findings(root: Path) -> tuple[list[Finding], Finding]:
    *found, last = verified(root, Screen(Console(file=io.StringIO())))
    return found, last


def test_whole_artifacts_are_counted(made, pool, tmp_path):
    (tmp_path / "finetune" / f"{made.id}.damaged-1").mkdir()
    (tmp_path / "finetune" / f"{made.id}.damaged-1" / "artifact.json").write_text("")
    assert findings(tmp_path) == ([], Finding("ok", "artifact", f"2 of 2 in {tmp_path} match their checksums"))


def test_a_changed_byte_is_named_and_deleting_the_file_lets_it_be_made_again(made, pool, tmp_path):
    path = made.path / "model.safetensors"
    path.write_bytes(b"Weights")
    [found], last = findings(tmp_path)
    assert found.mark == "bad" and last.text.startswith("1 of 2")
    assert f"{made.path}: missing or changed since it was made: model.safetensors; restore" in found.text
    path.unlink()
    contents._whole.clear()
    assert not made.complete


def test_a_changed_shard_is_named(made, pool, tmp_path):
    path = pool.path / "shards/00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:2000] + b"?" + content[2001:])
    [found], _ = findings(tmp_path)
    assert (
        found.mark == "bad" and f"{pool.path}: missing or changed since it was made: shards/00001.arrow" in found.text
    )


def test_a_damaged_record_is_named(made, pool, tmp_path):
    (made.path / "artifact.json").write_text("{")
    [found], last = findings(tmp_path)
    assert found.mark == "bad" and str(made.path) in found.text and "artifact.json" in found.text
    assert last.text.startswith("1 of 2")


def earlier(artifact: Artifact) -> None:
    path = artifact.path / "artifact.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "files"})
    )


def test_what_earlier_versions_made_is_compared_as_far_as_it_can_be(made, pool, tmp_path):
    earlier(made)
    earlier(pool)
    [found], _ = findings(tmp_path)  # the shards have checksums in the manifest
    assert found == Finding(
        "note", "artifact", f"{made.path}: made by a version that recorded no checksums; not compared"
    )
    (pool.path / "shards/00001.arrow").write_bytes(b"")
    assert [one.mark for one in findings(tmp_path)[0]] == ["note", "bad"]


def test_a_store_with_shards_elsewhere_says_how_to_compare_them(pool, tmp_path):
    manifest = pool.path / "manifest.json"
    manifest.write_text(json.dumps({**ImageStore(pool.path).manifest, "origin": "/elsewhere"}))
    (pool.path / "artifact.json").unlink()
    pool.finish({})
    [found], _ = findings(tmp_path)
    assert found.mark == "note" and "its shards are in /elsewhere; rayreid inspect" in found.text
