import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.pipeline.forecast.standings import Standing, State, is_held, standing_of
from rayreid.stages.quality import MEASURED
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import LEASE, RECORD
from rayreid.storage.lease_place import Holder, LeasePlace
from rayreid.training.checkpoint import Checkpoints


def artifact(root, stage="pretrain"):
    return Artifact(root, stage, 1, {"seed": 0})


@pytest.fixture
def begun(tmp_path):
    def begun(stage, inner):
        one = artifact(tmp_path, stage)
        (one.path / inner).mkdir(parents=True)
        return one

    return begun


def test_what_is_not_there_is_made(tmp_path):
    assert standing_of(artifact(tmp_path)) == Standing(State.MADE)
    assert list(tmp_path.iterdir()) == []


def test_what_is_complete_is_reused(tmp_path):
    one = artifact(tmp_path)
    with one.writing():
        one.finish({})
    assert standing_of(one) == Standing(State.REUSED)


def test_a_training_is_resumed_from_its_newest_sealed_checkpoint(begun):
    one = begun("pretrain", "checkpoints")
    Checkpoints(one.path / "checkpoints").save(25, {"step": 25})
    (one.path / "checkpoints" / "00000050.pt").write_bytes(b"cut off before its seal")
    assert standing_of(one) == Standing(State.RESUMED, 25, "steps")


def test_an_ingest_and_a_scoring_are_resumed_from_their_shards(begun):
    table = pa.table({"key": ["a", "b", "c"]})
    for stage, inner in (("ingest", "shards"), ("score", "scores")):
        one = begun(stage, inner)
        pq.write_table(table, one.path / inner / "00000.parquet")
        (one.path / inner / "00001.parquet").write_bytes(b"PAR1 torn")
        assert standing_of(one) == Standing(State.RESUMED, 3, "images")


def test_features_are_resumed_from_their_shards(begun):
    one = begun("features", "features")
    np.save(one.path / "features" / "00000.npy", np.zeros((5, 2), np.float16))
    assert standing_of(one).done == 5


def test_measures_of_quality_are_resumed_from_their_shards(begun):
    one = begun("quality", MEASURED)
    np.save(one.path / MEASURED / "00000.npy", np.zeros((7, 8), np.float32))
    assert standing_of(one) == Standing(State.RESUMED, 7, "images")


def test_what_is_damaged_says_why(begun):
    one = begun("evaluate", ".")
    (one.path / RECORD).write_text("{")
    found = standing_of(one)
    assert found.state is State.MADE and "cannot be understood" in found.fault
    (one.path / RECORD).write_text(
        json.dumps({"recipe": one.identity, "facts": {}, "files": {"a": {"size": 3, "checksum": ""}}})
    )
    assert standing_of(one).fault == "a is missing"


@pytest.mark.parametrize("record", ["{", "", '{"id": "0123456789ab"}'])
def test_nothing_is_kept_beside_a_record_that_is_unreadable_or_anothers(begun, record):
    one = begun("ingest", "shards")
    pq.write_table(pa.table({"key": ["a"]}), one.path / "shards" / "00000.parquet")
    whole = {"recipe": one.identity, "facts": {}, **json.loads(record)} if "id" in record else None
    (one.path / RECORD).write_text(json.dumps(whole) if whole else record)
    found = standing_of(one)
    assert (found.state, found.done) == (State.MADE, 0) and RECORD in found.fault


def test_the_whole_files_of_a_damaged_artifact_are_kept(begun):
    one = begun("ingest", "shards")
    pq.write_table(pa.table({"key": ["a"]}), one.path / "shards" / "00000.parquet")
    files = {"shards/00001.parquet": {"size": 3, "checksum": ""}}
    (one.path / RECORD).write_text(json.dumps({"recipe": one.identity, "facts": {}, "files": files}))
    assert standing_of(one) == Standing(State.RESUMED, 1, "images", "shards/00001.parquet is missing")


def test_what_another_process_makes_is_said(begun):
    one = begun("evaluate", ".")
    LeasePlace(one.path / LEASE).create(LeasePlace(one.path / LEASE).me("mine"))
    assert standing_of(one).running
    before = (one.path / LEASE).stat().st_mtime_ns
    assert is_held(one.path / LEASE) and (one.path / LEASE).stat().st_mtime_ns == before


def test_the_lease_of_another_machine_counts_while_it_is_touched(begun):
    lease = begun("evaluate", ".").path / LEASE
    lease.write_text(Holder("theirs", "elsewhere", 1, 1).text())
    assert is_held(lease)
    long_ago = time.time() - 3600
    os.utime(lease, (long_ago, long_ago))
    assert not is_held(lease) and not is_held(lease.with_name("none"))
