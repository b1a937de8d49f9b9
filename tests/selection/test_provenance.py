"""Where pool images come from: read and checked ahead of everything, never part of an identity."""

import os

import numpy as np
import pandas as pd
import pytest

from rayreid.config import Source
from rayreid.errors import UserError
from rayreid.selection.provenance import provenance_of


@pytest.fixture
def source(tmp_path):
    """A pool whose provenance file holds the given bytes."""

    def source(content: bytes | None, relevant: str | None = "near") -> Source:
        path = tmp_path / "origins.csv"
        if content is not None:
            path.write_bytes(content)
        return Source(dataset="folder", root="pool", provenance=str(path), relevant=relevant)

    return source


def refused(source: Source) -> str:
    with pytest.raises(UserError) as caught:
        provenance_of(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_are_text_even_where_they_are_numbers(source):
    known = provenance_of(source(b"key,origin\n001,near\n2,far\n"))
    assert known.origins(np.array(["2", "001", "1"], dtype=object)).tolist() == ["far", "near", "unknown"]


def test_columns_may_stand_in_any_order_among_others(source):
    known = provenance_of(source(b"\xef\xbb\xbforigin,width,key\nnear,10,a\nfar,20,b\n"))
    assert known.origins(np.array(["a", "b"], dtype=object)).tolist() == ["near", "far"]
    assert known.shares(np.array(["a", "b", "c", "d"], dtype=object)) == {
        "share.near": 0.25,
        "share.far": 0.25,
        "share.unknown": 0.5,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"Origin;Key\nnear;a/1.jpg\nfar;b/2.jpg\n",
        b"key, origin\na\\1.jpg, near\nb\\2.jpg, far\nc/3.jpg, NaN\n",
        "key\torigin\na/1.jpg\tnear\nb/2.jpg\tfar\n".encode("utf-16"),
        b"key,origin\n/pools/mine/a/1.jpg,near\n/pools/mine/b/2.jpg,far\n",
    ],
)
def test_keys_are_understood_as_other_programs_write_them(source, content):
    pool = source(content).model_copy(update={"root": "/pools/mine"})
    keys = np.array(["a/1.jpg", "b/2.jpg", "c/3.jpg"], dtype=object)
    assert provenance_of(pool).origins(keys).tolist() == ["near", "far", "unknown"]


def test_a_parquet_file_is_read_like_a_csv_file(tmp_path):
    frame = pd.DataFrame({"key": ["1", "2", None], "origin": pd.Categorical(["near", "far", None])})
    frame.to_parquet(tmp_path / "origins.parquet")
    frame.to_csv(tmp_path / "origins.csv", index=False)
    for name in ("origins.parquet", "origins.csv"):
        known = provenance_of(
            Source(dataset="folder", root="pool", provenance=str(tmp_path / name), relevant="near")
        ).origins(np.array(["1", "2"], dtype=object))
        assert known.tolist() == ["near", "far"]


def test_the_relevant_origin_is_what_a_priority_is_judged_by(source):
    content = b"key,origin\na,near\nb,near\nc,far\nd,far\n"
    keys, priority = np.array(list("abcd"), dtype=object), np.array([0.9, 0.4, 0.6, 0.1])
    assert provenance_of(source(content)).judge(keys, priority).auc == 0.75
    assert provenance_of(source(content, "far")).judge(keys, priority).auc == 0.25


def test_images_of_which_nothing_is_known_are_not_judged(source):
    keys = np.array(list("abcdxyz"), dtype=object)
    priority = np.array([0.9, 0.8, 0.6, 0.1, 0.99, 0.7, 0.0])
    named = provenance_of(source(b"key,origin\na,near\nb,near\nc,far\nd,unknown\n"))
    assert named.judge(keys, priority).auc == 1.0
    assert named.separation(keys, priority) == pytest.approx({"near": 1.0, "far": 1 / 3, "unknown": 0.0})
    assert provenance_of(source(b"key,origin\na,near\nb,near\n")).judge(keys, priority) is None


def test_a_file_that_was_changed_is_read_again(source, tmp_path):
    assert provenance_of(source(b"key,origin\na,near\n")).origins(np.array(["a"])).tolist() == ["near"]
    changed = source(b"key,origin\na,near\nb,near\n")
    os.utime(tmp_path / "origins.csv", ns=(1, 1))
    assert provenance_of(changed).origins(np.array(["b"])).tolist() == ["near"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "mpty"),
        (b"key,origin\n", "no image"),
        (b"path,origin\na,near\n", "columns key and origin"),
        (b"key,origin\na,near,1\n", "Expected 2 columns"),
        (b"key,origin\n\xff\xfe,near\n", "UTF8"),
        (None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(source, tmp_path, content, named):
    message = refused(source(content))
    assert str(tmp_path / "origins.csv") in message and named in message


def test_a_folder_is_no_file(source, tmp_path):
    (tmp_path / "origins.csv").mkdir()
    assert "no such file" in refused(source(None))


def test_an_origin_that_does_not_occur_is_refused_with_those_that_do(source):
    message = refused(source(b"key,origin\na,far\nb,here\n"))
    assert "pool.relevant is 'near'" in message and "far, here" in message


def test_a_drawn_pool_knows_itself():
    options = {"part": "pool", "images": 20, "size": [32, 16]}
    drawn = provenance_of(Source(dataset="synthetic", options=options))
    assert drawn.relevant == "target_domain"
    origins = drawn.origins(np.array([f"pool/{n:07d}.jpg" for n in range(20)], dtype=object))
    assert (origins == "target_domain").sum() == 10
    assert "background" in refused(Source(dataset="synthetic", options=options, relevant="near"))


def test_nothing_is_known_of_other_pools():
    assert provenance_of(Source(dataset="folder", root="pool")) is None


def test_separation_is_of_each_origin_from_all_others(source):
    known = provenance_of(source(b"key,origin\na,near\nb,near\nc,far\nd,back\n"))
    keys, priority = np.array(list("abcde"), dtype=object), np.array([0.9, 0.4, 0.6, 0.1, np.nan])
    assert known.separation(keys, priority) == pytest.approx({"near": 0.75, "far": 2 / 3, "back": 0.0})
    assert known.separation(keys[:2], priority[:2]) == {}
