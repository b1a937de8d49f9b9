"""Names of metrics and files."""

from rayreid.tracking.names import slug


def test_a_label_becomes_a_name():
    assert slug("CFS half, 0.5 (seed 1)") == "CFS_half__0_5__seed_1_"


def test_long_labels_stay_short_and_apart():
    one, other = slug("x" * 300), slug("x" * 299)
    assert len(one) == len(other) == 100 and one != other
    assert len(f"rank_correlation.{one}.{other}") <= 250  # as MLflow allows
    assert slug("x" * 100) == "x" * 100
