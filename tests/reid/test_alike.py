from rayreid.reid.alike import AlikeWatch


def said(lengths, patience=20):
    watch = AlikeWatch(patience)
    return [watch({"step": 10 * number + 9, "mean_length": length}) for number, length in enumerate(lengths)]


def test_features_that_stay_alike_are_told_once():
    found = said([0.5, 0.999999, 0.999999, 0.999999, 0.999999, 0.999999])
    assert found[:3] == [None] * 3 and found[4:] == [None] * 2
    assert "since step 19" in found[3] and "0.999999" in found[3]


def test_features_that_come_apart_again_are_nothing_to_tell():
    assert said([0.999999, 0.999999, 0.9999, 0.999999, 0.999999]) == [None] * 5


def test_rows_of_an_evaluation_are_passed_over():
    assert AlikeWatch(0)({"step": 1, "eval_mAP": 0.5}) is None
