"""Rules on the quality of images: what is refused, what is dropped, and how the rest is ranked."""

import numpy as np
import pyarrow as pa
import pytest

from rayreid.errors import UserError
from rayreid.selection.image_measures import MEASURES
from rayreid.selection.quality_rules import kept, parse_by, parse_rules, quality_priority

NAN = float("nan")


def table(**columns):
    """Return measures of images; all that is not given is 1."""
    count = len(next(iter(columns.values())))
    values = {name: columns.get(name, np.ones(count)) for name in MEASURES}
    keys = [f"{row:04d}.jpg" for row in range(count)]
    return pa.table({"key": keys, **{name: pa.array(np.asarray(value, np.float32)) for name, value in values.items()}})


def undecodable(count):
    return table(**{name: [NAN] * count for name in MEASURES})


def test_the_rules_of_the_issue_are_read():
    written = {
        "min_height": 64,
        "max_aspect": 4.0,
        "sharpness": {"drop_lowest": 0.05},
        "brightness": {"drop_lowest": 0.01, "drop_highest": 0.01},
    }
    names = [(rule.name, rule.measure, rule.value) for rule in parse_rules(written)]
    assert names == [
        ("min_height", "height", 64),
        ("max_aspect", "aspect", 4),
        ("sharpness.drop_lowest", "sharpness", 0.05),
        ("brightness.drop_lowest", "brightness", 0.01),
        ("brightness.drop_highest", "brightness", 0.01),
    ]
    assert parse_rules({}) == () == parse_rules({"min_height": None})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"min_heightt": 64}, r"select: unknown rule 'min_heightt'; did you mean 'min_height'\? Known: .*jpeg_quality"),
        ({"colour": 1}, r"select: unknown rule 'colour'; Known: min_, max_, or \{drop_lowest, drop_highest\}, of h"),
        ({"min_": 1}, "unknown rule 'min_'"),
        ({"min_height": "64"}, "select.min_height is '64'; height lies between 1 and 32,767"),
        ({"min_height": True}, "min_height is True"),
        ({"min_height": NAN}, "min_height is nan"),
        ({"min_height": -1}, "min_height is -1"),
        ({"min_brightness": 128}, "min_brightness is 128; brightness lies between 0 and 1"),
        ({"min_jpeg_quality": 0}, "jpeg_quality lies between 1 and 100"),
        ({"height": 64}, r"select.height is 64; give \{drop_lowest: share\}"),
        ({"height": {}}, "select.height is {}"),
        ({"height": {"lowest": 0.1}}, "select.height: unknown key 'lowest'; did you mean 'drop_lowest'"),
        ({"height": {"drop_lowest": 1}}, "select.height.drop_lowest is 1; give a share of the images, from 0 to below"),
        ({"height": {"drop_lowest": -0.1}}, "drop_lowest is -0.1"),
        ({"height": {"drop_highest": NAN}}, "drop_highest is nan"),
        ({"height": {"drop_highest": "5%"}}, "drop_highest is '5%'"),
        ({"height": {"drop_lowest": 0.5, "drop_highest": 0.5}}, "0.5 together drop every image; lower one"),
        ({"min_aspect": 3, "max_aspect": 2}, r"min_aspect \(3\) is above max_aspect \(2\).*swap them"),
        ({7: 1}, "unknown rule '7'"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(written, message):
    with pytest.raises(UserError, match=message) as refused:
        parse_rules(written)
    assert "\n" not in str(refused.value)


def test_messages_name_the_place():
    with pytest.raises(UserError, match=r"^select\.parts\.0\.min_height is 0;"):
        parse_rules({"min_height": 0}, "select.parts.0")


@pytest.mark.parametrize("names", [[], "height", ["heightt"], [3]])
def test_measures_to_rank_by_are_checked(names):
    with pytest.raises(UserError, match=r"^select\.by"):
        parse_by(names)
    assert parse_by(["contrast", "height", "contrast"]) == ("contrast", "height")


def test_thresholds_keep_the_bound_itself():
    found = kept(table(height=[63, 64, 65, 128, 129]), parse_rules({"min_height": 64, "max_height": 128}))
    assert found.tolist() == [False, True, True, True, False]
    assert kept(table(aspect=[2.1, 2.2]), parse_rules({"min_aspect": 2.1})).all()  # as a float32, 2.1 is below 2.1


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (3, 0.5), (7, 0.05), (40, 0.05), (101, 0.1), (1000, 0.333)])
def test_shares_drop_exactly_the_rounded_number(count, share):
    values = np.random.default_rng(count).permutation(count)
    low = kept(table(sharpness=values), parse_rules({"sharpness": {"drop_lowest": share}}))
    high = kept(table(sharpness=values), parse_rules({"sharpness": {"drop_highest": share}}))
    dropped = round(share * count)
    assert (values[~low] < dropped).all() and (~low).sum() == dropped
    assert (values[~high] >= count - dropped).all() and (~high).sum() == dropped


def test_both_shares_never_drop_the_same_image():
    rules = parse_rules({"sharpness": {"drop_lowest": 0.25, "drop_highest": 0.25}})
    assert kept(table(sharpness=[5] * 8), rules).tolist() == [False] * 2 + [True] * 4 + [False] * 2  # ties: by key
    assert kept(table(sharpness=[1, 3, 2, 0]), rules).tolist() == [True, False, True, False]


def test_an_image_that_lacks_a_measure_is_not_dropped_and_does_not_count():
    values = [NAN, 10, 20, 30, 40, NAN]
    rules = parse_rules({"min_jpeg_quality": 15, "jpeg_quality": {"drop_highest": 0.25}})
    assert kept(table(jpeg_quality=values), rules).tolist() == [True, False, True, True, False, True]


def test_an_undecodable_image_is_always_dropped():
    both = pa.concat_tables([undecodable(2), table(height=[10, 20])])
    assert kept(both, ()).tolist() == [False, False, True, True]
    priority, facts = quality_priority(both, ())
    assert np.isnan(priority).tolist() == [True, True, False, False]
    assert facts == {"eligible": 2}


def test_rules_judge_all_images_in_any_order():
    rng = np.random.default_rng(3)
    measures = table(height=rng.integers(20, 200, 300), sharpness=rng.random(300) * 100)
    written = {"min_height": 64, "sharpness": {"drop_lowest": 0.3}, "height": {"drop_highest": 0.1}}
    rules = parse_rules(written)
    assert np.array_equal(kept(measures, rules), kept(measures, rules[::-1]))
    alone = [kept(measures, (rule,)) for rule in rules]
    assert np.array_equal(kept(measures, rules), np.logical_and.reduce(alone))


def test_the_priority_is_the_worst_percentile_rank():
    measures = table(height=[1, 2, 3, 4], sharpness=[40, 10, 30, 20], contrast=[7, 7, 7, 7])
    priority, facts = quality_priority(measures, parse_rules({"max_height": 3}), ("height", "sharpness"))
    assert priority.tolist()[:3] == [0.25, 0.25, 0.75] and np.isnan(priority[3])  # the ranks are those of all four
    assert facts == {"eligible": 3, "dropped.max_height": 1}
    alike, _ = quality_priority(measures, (), ("contrast", "sharpness"))
    assert alike.tolist() == quality_priority(measures, (), ("sharpness",))[0].tolist() == [1.0, 0.25, 0.75, 0.5]
    even, _ = quality_priority(measures, (), ("contrast",))
    assert even.tolist() == [1.0] * 4 and even.dtype == np.float64


def test_a_measure_that_an_image_lacks_does_not_rank_it():
    measures = table(height=[1, 2, 3, 4], jpeg_quality=[NAN, 90, 80, NAN])
    priority, _ = quality_priority(measures, (), ("height", "jpeg_quality"))
    assert priority.tolist() == [0.25, 0.5, 0.5, 1.0]
    assert quality_priority(measures, (), ("jpeg_quality",))[0].tolist() == [0.5, 1.0, 0.5, 0.5]


def test_rules_that_leave_nothing_are_refused():
    both = pa.concat_tables([undecodable(1), table(height=[10, 20], contrast=[0.1, 0.5])])
    rules = parse_rules({"min_height": 15, "max_contrast": 0.2})
    expected = r"none of the 3 images \(min_height drops 1, max_contrast drops 1; 1 cannot be decoded\); loosen them"
    with pytest.raises(UserError, match=expected):
        quality_priority(both, rules)
    with pytest.raises(UserError, match=r"\(no rule; 3 cannot be decoded\)"):
        quality_priority(undecodable(3), ())


def test_a_missing_column_is_named():
    without = table(height=[1, 2]).drop_columns(["sharpness"])
    for use in (lambda: kept(without, parse_rules({"min_sharpness": 1})), lambda: quality_priority(without, ())):
        with pytest.raises(UserError, match=r"no column 'sharpness', which (min_sharpness|by) needs; remove"):
            use()
    assert kept(without, parse_rules({"min_height": 2})).tolist() == [False, True]
