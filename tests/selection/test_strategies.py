import numpy as np
import pyarrow as pa
import pytest

from rayreid.errors import UserError
from rayreid.selection.filelist import ListMatch
from rayreid.selection.registry import priority
from rayreid.selection.strategies import cut

NAN = float("nan")
KEYS = [f"pool/{i:04d}.jpg" for i in range(1000)]


def chosen(keys, priorities, size: int) -> list[str]:
    return [keys[row] for row in cut(keys, np.array(priorities, dtype=float), size)]


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
    assert chosen(["a", "b", "c"], priorities, 1) == ["c"]


def test_unknown_strategy_and_missing_input():
    with pytest.raises(UserError, match=r"'best'; known: cfs, target_similarity, .*, list, combine$"):
        priority("best", KEYS)
    for strategy in ("cfs", "cluster", "target_similarity", "list"):
        with pytest.raises(ValueError, match=f"{strategy} without its"):
            priority(strategy, KEYS)


def test_cut_takes_the_highest_and_returns_ascending_rows():
    rows = cut(list("abcde"), np.array([0.1, 0.9, -3.0, 0.5, 0.7]), 3)
    assert rows.dtype == np.int64
    assert rows.tolist() == [1, 3, 4]


def test_ties_go_to_the_smaller_key():
    assert chosen(list("dbca"), [0.5, 0.5, 0.9, 0.5], 3) == ["b", "c", "a"]
    assert chosen(list("dbca"), [0.5, 0.5, 0.5, 0.5], 1) == ["a"]


def test_an_image_without_priority_is_never_selected():
    priorities = [NAN, 0.1, 0.2, 0.3, NAN, NAN, NAN, NAN, NAN, NAN]
    keys = list("abcdefghij")
    assert chosen(keys, priorities, 2) == ["c", "d"]
    # Not more than there are
    assert chosen(keys, priorities, 10) == ["b", "c", "d"]


def test_cuts_are_nested():
    # Few distinct values, so that most cuts fall among ties
    priorities = np.round(np.random.default_rng(0).random(len(KEYS)), 1)
    priorities[::7] = NAN
    smaller: set[int] = set()
    for size in range(50, 1001, 50):
        rows = set(cut(KEYS, priorities, size).tolist())
        assert smaller < rows or len(rows) == np.isfinite(priorities).sum()
        smaller = rows


def test_the_cut_does_not_depend_on_the_order_of_the_store():
    priorities = np.round(np.random.default_rng(0).random(len(KEYS)), 1)
    shuffled = np.random.default_rng(1).permutation(len(KEYS))
    other_keys = np.array(KEYS, dtype=np.dtypes.StringDType())[shuffled]
    assert set(chosen(KEYS, priorities, 330)) == {
        str(key) for key in other_keys[cut(other_keys, priorities[shuffled], 330)]
    }


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (4, "select.count must be between 1 and the store's 3 images, not 4"),
        (0, "no image"),
        (-1, "no image"),
    ],
)
def test_impossible_cuts_are_refused(size, message):
    with pytest.raises(UserError, match=message):
        cut(list("abc"), np.array([1.0, 2.0, 3.0]), size)


def test_nothing_with_a_priority_is_refused():
    with pytest.raises(UserError, match="no image"):
        cut(list("abc"), np.full(3, NAN), 2)
