import pytest

from rayreid.evaluation.retrieval_figures import told_apart


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        ([0.9, 0.5], ["0.90", "0.50"]),
        ([0.99991, 0.99982], ["0.9999", "0.9998"]),
        ([1.0, 1.0], ["1.00", "1.00"]),
        ([0.12345678, 0.12345679], ["0.123457", "0.123457"]),
        ([], []),
    ],
)
def test_scores_have_the_digits_that_tell_them_apart(scores, texts):
    assert told_apart(scores) == texts
