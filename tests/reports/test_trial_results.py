"""What trials are compared by, from their records alone."""

import pytest

from rayreid.evaluation.metrics import METRICS
from rayreid.evaluation.outcomes import grouped, names_of
from rayreid.reports.trial_results import trials_of
from rayreid.tracking.history import Record

TAGS = {
    **{"backbone": "vit_tiny", "stem": "patchify", "method": "dino", "adapt": "none"},
    **{"strategy": "cfs", "fraction": "0.5", "seed": "0"},
}


def record(name: str, **metrics: float) -> Record:
    values = {**dict.fromkeys(METRICS, 0.5), "images": 60.0, "gpu_hours": 0.0, "total_seconds": 1.0, **metrics}
    return Record(name, name, "FINISHED", {**TAGS, "artifact.metrics": name}, {}, values)


@pytest.mark.parametrize("leaked", [0, 7])
def test_a_report_marks_trials_whose_pool_holds_test_images(leaked):
    marked = {"test_images_in_pool": leaked} if leaked else {}
    outcomes = [trial.outcome for trial in trials_of([record("clean"), record("other", **marked)])]
    names = names_of(grouped(outcomes))
    if leaked:
        assert names == ["cfs 50 %", "cfs 50 %, test_images_in_pool=7"]
    else:
        assert names == ["cfs 50 %"]  # two measurements of one setting
