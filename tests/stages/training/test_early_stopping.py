"""The median rule: which pre-trainings it ends, and when."""

import pytest
import torch

from rayreid.errors import StoppedEarly
from rayreid.stages.training.early_stopping import Judged, MedianStopping
from rayreid.storage.metrics_log import Journal

CPU = torch.device("cpu")


@pytest.fixture
def rivals(tmp_path):
    """Three that found 10, 20 and 30 % after epoch 2, and more later; one that has not come as far."""
    paths = []
    for number, value in enumerate((0.1, 0.2, 0.3)):
        paths.append(tmp_path / f"{number}.jsonl")
        for epoch, found in ((1, value / 2), (2, value), (4, 0.9)):
            Journal(paths[-1]).append({"step": epoch * 10 - 1, "epoch": float(epoch), "probe_mAP": found})
            Journal(paths[-1]).append({"step": epoch * 10 - 1, "loss": 1.0})
    paths += [tmp_path / "behind.jsonl", tmp_path / "not there.jsonl"]
    Journal(paths[3]).append({"step": 9, "epoch": 1.0, "probe_mAP": 0.99})
    return paths


def test_what_lies_below_the_median_of_those_that_came_as_far_is_ended(rivals, tmp_path):
    rule = MedianStopping(tuple(rivals), grace=1)
    reason = rule.verdict(2, 0.19, tmp_path / "own.jsonl")
    assert "epoch 2" in reason and "19.0" in reason and "3 other trials, 20.0" in reason
    assert rule.verdict(2, 0.2, tmp_path / "own.jsonl") is None
    assert rule.verdict(1, 0.12, tmp_path / "own.jsonl") is not None  # of four: 5, 10, 15 and 99 %


def test_nothing_is_ended_before_its_time_or_against_few(rivals, tmp_path):
    assert MedianStopping(tuple(rivals), grace=3).verdict(2, 0.0, tmp_path / "own.jsonl") is None
    assert MedianStopping(tuple(rivals[:2]), grace=1).verdict(2, 0.0, tmp_path / "own.jsonl") is None
    # Of three the training itself is one.
    assert MedianStopping(tuple(rivals), grace=1).verdict(2, 0.0, rivals[0]) is None


def test_a_training_is_ended_after_the_probe_that_says_so_and_not_for_one_bad_probe(rivals, tmp_path):
    own = tmp_path / "own.jsonl"
    found = {1: 0.15, 2: 0.05, 4: 0.05}
    judged = Judged(
        lambda method, device, threads: lambda epochs: {"probe_mAP": found[epochs]} if epochs in found else {},
        MedianStopping((*rivals, own), grace=2),
        own,
    )
    look = judged(None, CPU, 1)
    assert look(1) == {"probe_mAP": 0.15}
    Journal(own).append({"step": 9, "epoch": 1.0, "probe_mAP": 0.25})
    assert look(2) == {"probe_mAP": 0.05}  # it had reached 25 %, above the median of 20 %
    assert look(3) == {}
    with pytest.raises(StoppedEarly, match="epoch 4"):
        look(4)
