"""Many artifacts at a time: each once, and what fails takes with it only what stands on it."""

import pytest

from rayreid.config.loading import load_experiment
from rayreid.pipeline.experiment_runner import open_session
from rayreid.storage.artifacts import Artifact
from rayreid.sweeps.shared_artifacts import blocked, produce_all


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
