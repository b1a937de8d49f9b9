import numpy as np
import pyarrow as pa
import pytest

from rayreid.errors import UserError
from rayreid.selection.filelist import ListMatch
from rayreid.selection.strategies import cut, priority

NAN = float("nan")
KEYS = [f"pool/{i:04d}.jpg" for i in range(1000)]


def chosen(keys, priorities, **size) -> list[str]:
    return [keys[row] for row in cut(keys, np.array(priorities, dtype=float), **size)]


def test_random_is_uniform_and_belongs_to_the_key():
    first = priority("random", KEYS, seed=3)
    assert first.dtype == np.float64
    assert (first >= 0).all() and (first < 1).all()
    assert len(set(first)) == len(KEYS)
    histogram, _ = np.histogram(first, bins=10, range=(0, 1))
    assert histogram.min() > 60
    shuffled = np.random.default_rng(0).permutation(len(KEYS))[:100]
    alone = priority("random", [KEYS[i] for i in shuffled], seed=3)
    np.testing.assert_array_equal(alone, first[shuffled])


def test_random_depends_on_the_seed():
    first, second = (priority("random", KEYS, seed=seed) for seed in (3, 4))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    np.testing.assert_array_equal(priority("random", KEYS, seed=-1), priority("random", KEYS, seed=2**64 - 1))


def test_random_does_not_change_between_versions():
    assert priority("random", ["a.jpg", "é.jpg"], seed=7).tolist() == pytest.approx(RANDOM_PRIORITIES, abs=0)


RANDOM_PRIORITIES = [0.49329409914744327, 0.980751694345936]


@pytest.mark.parametrize("as_keys", [list, lambda keys: np.array(keys, dtype=np.dtypes.StringDType())])
def test_cfs_comes_by_key_from_the_table(as_keys):
    table = pa.table({"key": ["c", "x", "a"], "cfs": pa.array([0.25, 0.9, -0.5], pa.float32())})
    table = pa.concat_tables([table.slice(0, 1), table.slice(1)])  # one file per shard
    np.testing.assert_array_equal(priority("cfs", as_keys(["a", "b", "c"]), scores=table), [-0.5, NAN, 0.25])


def test_cfs_refuses_scores_of_another_store_and_repeated_ones():
    with pytest.raises(UserError, match="another store"):
        priority("cfs", ["a"], scores=pa.table({"key": ["b"], "cfs": [0.5]}))
    with pytest.raises(UserError, match="more than once"):
        priority("cfs", ["a"], scores=pa.table({"key": ["a", "a"], "cfs": [0.5, 0.6]}))


@pytest.mark.parametrize("strategy", ["cluster", "target_similarity"])
def test_other_priorities_come_from_a_table_as_well(strategy):
    table = pa.table({"key": ["c", "a"], "priority": pa.array([-2.5, NAN])})
    np.testing.assert_array_equal(priority(strategy, ["a", "b", "c"], scores=table), [NAN, NAN, -2.5])


def test_list_ranks_by_position():
    match = ListMatch(rows=np.array([2, 0]), entries=2, matched=2, ambiguous=0)
    priorities = priority("list", ["a", "b", "c"], match=match)
    assert np.isnan(priorities[1])
    assert priorities[2] > priorities[0]
    assert chosen(["a", "b", "c"], priorities, count=1) == ["c"]


def test_unknown_strategy_and_missing_input():
    with pytest.raises(UserError, match=r"'best'; known: cfs, target_similarity, cluster, random, list"):
        priority("best", KEYS)
    for strategy in ("cfs", "cluster", "target_similarity", "list"):
        with pytest.raises(ValueError, match=f"{strategy} without its"):
            priority(strategy, KEYS)


def test_cut_takes_the_highest_and_returns_ascending_rows():
    rows = cut(list("abcde"), np.array([0.1, 0.9, -3.0, 0.5, 0.7]), fraction=0.6)
    assert rows.dtype == np.int64
    assert rows.tolist() == [1, 3, 4]


def test_ties_go_to_the_smaller_key():
    assert chosen(list("dbca"), [0.5, 0.5, 0.9, 0.5], count=3) == ["b", "c", "a"]
    assert chosen(list("dbca"), [0.5, 0.5, 0.5, 0.5], count=1) == ["a"]


def test_the_fraction_counts_images_without_priority():
    priorities = [NAN, 0.1, 0.2, 0.3, NAN, NAN, NAN, NAN, NAN, NAN]
    keys = list("abcdefghij")
    assert chosen(keys, priorities, fraction=0.2) == ["c", "d"]
    # Not more than there are: an image without priority is never selected
    assert chosen(keys, priorities, fraction=1.0) == ["b", "c", "d"]


@pytest.mark.parametrize(("images", "fraction", "expected"), [(1000, 0.1, 100), (7, 0.5, 4), (3, 0.5, 2), (3, 1.0, 3)])
def test_the_fraction_is_rounded(images, fraction, expected):
    assert len(cut(KEYS[:images], np.arange(float(images)), fraction=fraction)) == expected


def test_cuts_are_nested():
    # Few distinct values, so that most cuts fall among ties
    priorities = np.round(np.random.default_rng(0).random(len(KEYS)), 1)
    priorities[::7] = NAN
    smaller: set[int] = set()
    for fraction in np.linspace(0.05, 1, 20):
        rows = set(cut(KEYS, priorities, fraction=float(fraction)).tolist())
        assert smaller < rows or len(rows) == np.isfinite(priorities).sum()
        smaller = rows


def test_the_cut_does_not_depend_on_the_order_of_the_store():
    priorities = np.round(np.random.default_rng(0).random(len(KEYS)), 1)
    shuffled = np.random.default_rng(1).permutation(len(KEYS))
    other_keys = np.array(KEYS, dtype=np.dtypes.StringDType())[shuffled]
    assert set(chosen(KEYS, priorities, fraction=0.33)) == {
        str(key) for key in other_keys[cut(other_keys, priorities[shuffled], fraction=0.33)]
    }


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({}, "exactly one"),
        ({"fraction": 0.5, "count": 2}, "exactly one"),
        ({"fraction": 0.0}, "select.fraction must be"),
        ({"fraction": 1.5}, "select.fraction must be"),
        ({"fraction": NAN}, "select.fraction must be"),
        ({"count": 0}, "select.count must be"),
        ({"count": 4}, "select.count must be between 1 and the store's 3 images, not 4"),
        ({"fraction": 0.1}, "no image"),
    ],
)
def test_impossible_cuts_are_refused(size, message):
    with pytest.raises(UserError, match=message):
        cut(list("abc"), np.array([1.0, 2.0, 3.0]), **size)


def test_nothing_with_a_priority_is_refused():
    with pytest.raises(UserError, match="no image"):
        cut(list("abc"), np.full(3, NAN), count=2)
