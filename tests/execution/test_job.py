"""An experiment submitted as a Ray job to a local cluster: the package travels with the working directory."""

import json

import pytest

from job_head import checkout, started

pytestmark = pytest.mark.ray


@pytest.fixture
def head(tmp_path_factory):
    with started(tmp_path_factory.mktemp("outputs"), RAY_AUTH_MODE="disabled") as head:
        head.wait_until_up()
        yield head


def travelled(head) -> set[str]:
    """The files of the working directory, as the head unpacked it."""
    (folder,) = [path for path in head.session.glob("runtime_resources/working_dir_files/*") if path.is_dir()]
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_submitted_job_does_the_same(head, tiny):
    file = tiny(pretrain="none")
    tree = checkout(file.parent / "tree", file)

    done = head.submit(tree, "jobs/run.py", "tiny.yaml", "finetune.lr=0.002")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Rank-1" in done.stdout
    evaluations = list((head.root / "evaluate").iterdir())
    assert len(evaluations) == 1 and (evaluations[0] / "artifact.json").exists()
    (model,) = (head.root / "finetune").iterdir()
    assert json.loads((model / "artifact.json").read_text())["recipe"]["fields"]["finetune"]["lr"] == 0.002

    files = travelled(head)
    assert {"tiny.yaml", "constraints.txt", "jobs/run.py", "platform/rayreid/data/store/store.py"} <= files
    stays = (".git/", ".venv/", "data/", "outputs/", "mlruns/", "tests/")
    assert [name for name in files if name.startswith(stays) or name.endswith(".db")] == []

    refused = head.submit(tree, "jobs/run.py", "tiny.yaml", "target.dataset=market1501", "target.root=data")
    assert refused.returncode != 0
    assert "relative path inside a submitted job" in refused.stdout
    assert "failed" in refused.stdout + refused.stderr
