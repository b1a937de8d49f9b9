"""Short trainings on the lines of the table of selections: what is planned, what is trained; without a cluster."""

import pytest
import yaml

from rayreid.config.loading import load_experiment
from rayreid.errors import UserError
from rayreid.pipeline import short_trainings
from rayreid.pipeline.judging import WHOLE
from rayreid.pipeline.selection_report import variants
from rayreid.pipeline.short_trainings import plan_short_trainings
from small_store import small_store
from tiny_experiment import TINY


@pytest.fixture
def rows(tmp_path) -> dict:
    pretrain = {**TINY["pretrain"], "epochs": 20, "warmup_epochs": 15, "probe_every": 0, "batch_size": 4}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "pretrain": pretrain, "select": {"count": 30}}))
    return variants(load_experiment(tmp_path / "tiny.yaml"), ["random", "cluster"])


def test_all_lines_are_trained_alike_but_for_their_images(rows, tmp_path):
    short = plan_short_trainings(rows, 7, tmp_path)
    lines = [(label, fraction) for label in rows for fraction in (0.1, 0.25, 0.5, 0.75)]
    assert list(short.weights) == [*lines, (WHOLE, 1.0)] and short.steps == 7 and short.batch_size == 4
    configs = [weights.fields["pretrain"] for weights in short.weights.values()]
    assert all(config == configs[0] for config in configs) and configs[0]["steps"] == 7
    assert configs[0]["warmup_epochs"] == "auto"  # 15 epochs are longer than the training
    assert all("target" in weights.auxiliary for weights in short.weights.values())  # probed, whatever the file says
    subsets = [weights.inputs["subset"].id for line, weights in short.weights.items() if line != (WHOLE, 1.0)]
    assert len(set(subsets)) == 8 and "subset" not in short.weights[WHOLE, 1.0].inputs
    assert len({weights.id for weights in short.graph.values()}) == 9


def test_a_filter_is_trained_on_the_whole_pool_too(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    rows = variants(load_experiment(tmp_path / "tiny.yaml"), ["dedup", "random"])
    lines = plan_short_trainings(rows, 7, tmp_path).weights
    assert "subset" in lines["dedup", 1.0].inputs and ("random", 1.0) not in lines


def test_a_part_of_less_than_a_batch_is_left_out(rows, tmp_path, monkeypatch):
    store = small_store(tmp_path / "store")  # 12 images: 1, 3, 6, 9 and all of them
    produced = []

    def produce(artifact, run, screen, tags):
        produced.append((artifact.stage, tags.get("row")))
        images = round(12 * artifact.fields["select"]["fraction"]) if artifact.stage == "select" else None
        monkeypatch.setattr(type(artifact), "facts", property(lambda self: {"images": images}))
        return artifact

    monkeypatch.setattr(short_trainings, "produce", produce)
    monkeypatch.setattr(short_trainings, "probes_of", lambda weights: {"probe_end": 0.5})
    trained = plan_short_trainings({"random": rows["random"]}, 7, tmp_path).run(store, None, None, {})
    assert list(trained.probes) == [("random", 0.5), ("random", 0.75), (WHOLE, 1.0)]
    names = ["random at 50%", "random at 75%", "all images at 100%"]
    assert [row for stage, row in produced if stage == "pretrain"] == names


def test_a_number_of_steps_is_a_number_of_steps(rows, tmp_path):
    with pytest.raises(UserError, match="--proxy-steps"):
        plan_short_trainings(rows, 0, tmp_path)
