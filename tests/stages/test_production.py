"""Making artifacts: once, whole, and continued after an interruption; without Ray or MLflow."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from rayreid.artifacts import Artifact
from rayreid.errors import UserError
from rayreid.stages.production import produce
from rayreid.stages.progress import Screen


class Recorder:
    """A run that only remembers."""

    def __init__(self):
        self.id, self.logged, self.tracker = "r", {}, SimpleNamespace(resume=lambda run: self)

    def child(self, name, tags):
        return self

    def params(self, values):
        self.logged.update(values)

    metrics = params

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def make(tmp_path):
    def make(job, **inputs):
        artifact = Artifact(tmp_path, "stage", 1, {"answer": 42}, inputs, job)
        return produce(artifact, Recorder(), Screen(Console(file=io.StringIO())), {})

    return make


def test_what_is_complete_is_not_made_again(make):
    calls = []
    for _ in range(2):
        artifact = make(lambda work: calls.append(work.folder) or {"images": 3})
    assert calls == [artifact.path]
    assert artifact.facts == {"images": 3, "seconds": 0.0, "resumed": False, "run": "r"}


def test_an_interrupted_one_goes_on_and_says_so(make):
    def first(work):
        (work.folder / "half").write_text("done")
        (work.folder / "checkpoints").mkdir()
        raise KeyboardInterrupt

    def second(work):
        return {"found": (work.folder / "half").read_text()}

    with pytest.raises(KeyboardInterrupt):
        make(first)
    artifact = make(second)
    assert artifact.facts["found"] == "done" and artifact.facts["resumed"] is True
    assert not (artifact.path / "checkpoints").exists()


def test_one_that_was_refused_before_it_began_leaves_nothing(make, tmp_path):
    def refuse(work):
        raise UserError("no")

    with pytest.raises(UserError):
        make(refuse)
    assert list(tmp_path.glob("stage/*")) == []
    assert make(lambda work: {}).facts["resumed"] is False
