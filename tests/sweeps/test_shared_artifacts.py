"""Many artifacts at a time: each once, and what fails takes with it only what stands on it."""

import pytest

from rayreid.config.loading import load_experiment
from rayreid.pipeline.experiment_runner import open_session
from rayreid.storage.artifacts import Artifact
from rayreid.sweeps.shared_artifacts import _needs, blocked, produce_all


@pytest.fixture
def made():
    return []


@pytest.fixture
def artifact(root, made):
    """Makes the plan of an artifact that stands on others."""

    def artifact(name, *inputs, fails=False):
        def job(work):
            if fails:
                raise RuntimeError(f"{name} is broken\non line 2")
            made.append(name)
            return {}

        return Artifact(root, "stage", 1, {"name": name}, {one.fields["name"]: one for one in inputs}, job)

    return artifact


def test_each_is_made_once_after_what_it_stands_on(tiny, artifact, made):
    experiment = load_experiment(tiny(pretrain="none"))
    session = open_session(experiment)
    pool = artifact("pool")
    proxy = artifact("proxy", pool, fails=True)
    scores = artifact("scores", proxy)
    subset = artifact("subset", scores, pool)
    other = artifact("random subset", pool)
    everything = [subset, scores, other, proxy, pool]
    failed = produce_all(everything, 1, experiment, session, session.tracker.run("sweep"), {})
    assert made == ["pool", "random subset"]
    reason = f"{proxy}: on line 2"
    assert failed == dict.fromkeys((proxy.id, scores.id, subset.id), reason)
    assert blocked(subset, failed) == reason and blocked(other, failed) is None
    produce_all(everything, 1, experiment, session, session.tracker.run("again"), {})
    assert made == ["pool", "random subset"]


def test_each_waits_for_its_inputs_and_for_what_stands_beside_it(tmp_path):
    pool, target = (Artifact(tmp_path, "ingest", 1, {"name": name}) for name in ("pool", "target"))
    probed = Artifact(tmp_path, "pretrain", 1, {}, {"pool": pool}, auxiliary={"target": target})
    model = Artifact(tmp_path, "finetune", 1, {}, {"weights": probed})
    for one in (pool, target):
        assert _needs(probed, {one.id: one}, {}) and _needs(probed, {}, {"task": one})
        assert not _needs(one, {probed.id: probed}, {"task": model})
    assert _needs(model, {pool.id: pool}, {}) and not _needs(model, {target.id: target}, {})
    assert not _needs(probed, {probed.id: probed, model.id: model}, {})
