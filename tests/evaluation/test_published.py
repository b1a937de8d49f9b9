import pytest

from rayreid.evaluation.published import PUBLISHED, incomparable, published_for


@pytest.mark.parametrize(
    ("target", "queries", "gallery", "because"),
    [
        ("synthetic", 160, 400, "on synthetic"),
        ("market1501", 920, 3_293, "920 queries, 3,293 images"),
        ("market1501", 3_368, 15_912, "another one"),
        ("market1501", None, None, "unknown size"),
        ("msmt17 V2", 11_659, 82_161, "faces masked"),
    ],
)
def test_another_test_set_cannot_be_compared(target, queries, gallery, because):
    assert because in incomparable(target, queries, gallery)


@pytest.mark.parametrize(("target", "size"), [("market1501", (3_368, 15_913)), ("msmt17 V1", (11_659, 82_161))])
def test_the_public_test_sets_can(target, size):
    assert incomparable(target, *size) is None


def test_published_results_are_of_the_same_task_and_where_there_are_any_of_the_same_target():
    ours = published_for("usl", "msmt17")
    assert [(one.mAP, one.rank1) for one in ours] == [(40.9, 66.4), (50.6, 75.0)]
    assert {one.dataset for one in published_for("uda", "synthetic")} == {"market1501", "msmt17"}
    assert {one.task for one in PUBLISHED} == {"supervised", "usl", "uda"}
    assert all(0 < one.mAP < one.rank1 < 100 for one in PUBLISHED)
