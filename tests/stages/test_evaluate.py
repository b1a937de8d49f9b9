"""What an evaluation counts before it ranks: queries whose very bytes stand in the gallery."""

import numpy as np
import pytest
from safetensors import safe_open

from in_process import work_on
from rayreid.config import Evaluate
from rayreid.config.loading import load_experiment
from rayreid.errors import UserError
from rayreid.pipeline.experiment_runner import run
from rayreid.stages import evaluate
from rayreid.stages.evaluate import _copies, _warned
from rayreid.storage.artifacts import Artifact


class Store:
    """Encoded images with their labels; a name's bytes are those of all images of that name."""

    def __init__(self, *images: tuple[str, int, int]):
        self.names, pids, camids = zip(*images, strict=True)
        self.pids, self.camids = np.array(pids), np.array(camids)

    def encoded(self, row: int) -> memoryview:
        return memoryview(self.names[row].encode())


@pytest.mark.parametrize(
    ("gallery", "counted"),
    [
        (("same", 7, 1), 1),  # a true match of similarity 1
        (("same", 8, 1), 1),  # an error that no model can avoid
        (("same", 8, 0), 1),
        (("same", 7, 0), 0),  # the protocol leaves out the same identity by the same camera
        (("same", -1, 1), 0),  # junk
        (("other", 7, 1), 0),
    ],
)
def test_a_copy_counts_where_the_protocol_counts_it(gallery, counted):
    store = Store(("same", 7, 0), gallery)
    assert _copies(store, np.array([0]), np.array([1])) == counted


def test_without_cameras_every_copy_counts_and_a_junk_query_does_not():
    store = Store(("same", 7, -1), ("same", -1, 0), ("same", 7, -1), ("same", 7, 2))
    assert _copies(store, np.array([0, 1]), np.array([2, 3])) == 1


def test_features_that_rounding_cannot_tell_apart_are_warned_of(tmp_path):
    work = work_on(Artifact(tmp_path, "evaluate", 1, {}))
    assert _warned(0.9999, work) == [] and not work.run.tagged
    (warning,) = _warned(0.999999, work)
    assert "length 0.999999" in warning and work.run.tagged == {"warning": warning}
    assert warning in work.screen.console.file.getvalue().replace("\n", " ")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_feature_after_a_neck_that_cannot_be_there_is_refused_beforehand(tmp_path, stage):
    target, model = Artifact(tmp_path, "ingest", 1, {}), Artifact(tmp_path, stage, 1, {})
    for feature in ("before", "after"):
        metrics = evaluate.plan(target, model, Evaluate(feature=feature))
        if (stage, feature) == ("pretrain", "after"):
            with pytest.raises(UserError, match="without fine-tuning has no BNNeck"):
                evaluate.check_feature(metrics)
        else:
            evaluate.check_feature(metrics)


@pytest.mark.ray
def test_the_feature_after_the_neck_of_the_same_model_ranks_otherwise(root, shared_ray, tiny):
    rows = [{"label": "before"}, {"label": "after", "evaluate.feature": "after"}]
    before, after = run(load_experiment(tiny(compare=[{**row, "pretrain": "none"} for row in rows])))
    (model,) = (root / "finetune").iterdir()
    with safe_open(model / "model.safetensors", framework="pt") as file:  # a neck that only shifts would change less
        assert len(file.get_tensor("bnneck.scale").unique()) > 1
    assert len(list((root / "evaluate").iterdir())) == 2
    assert (before.label, after.label) == ("before", "after") and before.scores["mAP"] != after.scores["mAP"]
