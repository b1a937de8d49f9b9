import json

from rayreid.pipeline.forecast.causes import Cause, Difference, cause_of
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import RECORD
from rayreid.storage.inventory import Inventory


def finish(artifact):
    with artifact.writing():
        artifact.finish({})
    return artifact


def pool(root, images=100, version=3):
    return Artifact(root, "ingest", version, {"source": {"dataset": "synthetic", "options": {"images": images}}})


def weights(root, images, **changes):
    fields = {"pretrain": {"epochs": 10, "lr": 0.1} | changes, "seed": 0}
    return Artifact(root, "pretrain", 2, fields, {"pool": images})


def test_there_is_no_cause_where_nothing_of_the_stage_is_complete(tmp_path):
    finish(pool(tmp_path))
    assert cause_of(weights(tmp_path, pool(tmp_path)), Inventory(tmp_path)) is None


def test_the_fields_that_differ_are_named_with_both_values(tmp_path):
    images = finish(pool(tmp_path))
    there = finish(weights(tmp_path, images))
    assert cause_of(weights(tmp_path, images, epochs=20), Inventory(tmp_path)) == Cause(
        str(there), (Difference("pretrain.epochs", 20, 10),)
    )


def test_the_nearest_has_the_fewest_differences(tmp_path):
    images = finish(pool(tmp_path))
    finish(weights(tmp_path, images, lr=0.2))
    near = finish(weights(tmp_path, images, epochs=20))
    found = cause_of(weights(tmp_path, images, epochs=30), Inventory(tmp_path))
    assert found.nearest == str(near) and str(found.differences[0]) == "pretrain.epochs is 30, there 20"


def test_what_differs_in_an_input_is_named_with_its_role(tmp_path):
    finish(weights(tmp_path, finish(pool(tmp_path))))
    found = cause_of(weights(tmp_path, pool(tmp_path, 200)), Inventory(tmp_path))
    assert found.differences == (Difference("pool › source.options.images", 200, 100),)


def test_a_raised_version_is_a_difference(tmp_path):
    finish(pool(tmp_path, version=2))
    found = cause_of(pool(tmp_path), Inventory(tmp_path))
    assert found.differences == (Difference("version of ingest", 3, 2),)


def test_an_input_that_is_gone_is_named_by_its_id(tmp_path):
    lost = pool(tmp_path, 50)
    finish(weights(tmp_path, lost))
    wanted = pool(tmp_path)
    found = cause_of(weights(tmp_path, wanted), Inventory(tmp_path))
    assert found.differences == (Difference("pool", str(wanted), lost.id),)


def test_a_field_and_an_input_that_only_one_has_are_not_set_in_the_other(tmp_path):
    images = finish(pool(tmp_path))
    finish(weights(tmp_path, images, steps=5))
    subset = Artifact(tmp_path, "select", 1, {}, {"pool": images})
    wanted = weights(tmp_path, images)
    wanted = Artifact(tmp_path, "pretrain", 2, wanted.fields, {"pool": images, "subset": subset})
    found = cause_of(wanted, Inventory(tmp_path))
    assert [str(one) for one in found.differences] == [
        "pretrain.steps is not set, there 5",
        f"subset is {subset}, there not set",
    ]


def test_credentials_are_masked_before_a_long_value_is_cut(tmp_path):
    secret = f"s3://AKuser:{'hunter2' * 10}@store"
    shown = str(Difference("source.root", None, secret))
    assert shown == "source.root is null, there s3://***@store"


def test_an_artifact_without_one_of_its_files_is_not_the_nearest(tmp_path):
    near = pool(tmp_path, 50)
    near.path.mkdir(parents=True)
    files = {"shards/00000.parquet": {"size": 3, "checksum": ""}}
    (near.path / RECORD).write_text(json.dumps({"recipe": near.identity, "facts": {}, "files": files}))
    assert cause_of(pool(tmp_path), Inventory(tmp_path)) is None
