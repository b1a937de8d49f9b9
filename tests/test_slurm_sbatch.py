"""jobs/slurm.sbatch, with a stand-in for Slurm's commands that runs a job's nodes as processes of this machine."""

import json
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from job_head import started
from killed import newest_step
from slurm_stand_in import SlurmStandIn, wait_until
from tiny_experiment import TINY

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "jobs/slurm.sbatch"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
OUTSIDE = "is not set: start this script with sbatch, or with bash within an allocation of salloc"


@pytest.fixture
def slurm(tmp_path):
    made = SlurmStandIn(tmp_path / "slurm")
    yield made
    left = made.processes()
    for process in left:
        process.kill()
    assert left == []


@pytest.fixture
def folder(tmp_path):
    """A folder to submit from, with the tiny experiment for two workers of a CPU each, one per node."""
    path = tmp_path / "repository"
    path.mkdir()
    resources = {"workers": 2, "cpus_per_worker": 1, "gpu": False}
    (path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "resources": resources, "select": {"fraction": 1.0}}))
    return path


@pytest.fixture
def long_file(folder):
    """The tiny experiment in steps enough to be interrupted among, with a checkpoint after every step."""
    experiment = yaml.safe_load((folder / "tiny.yaml").read_text())
    changes = {"epochs": 3, "batch_size": 4, "checkpoint_minutes": 1e-6, "probe_every": 0}
    experiment["pretrain"] |= changes
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))


def test_shellcheck_finds_nothing():
    done = subprocess.run([SHELLCHECK, SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_job_is_requeued_and_its_script_hears_of_the_time_limit_and_its_log_is_kept():
    options = dict(re.findall(r"^#SBATCH --([^=\s]+)=?(\S*)$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "B:USR1@300" and "requeue" in options and options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["nodes"] == "1"


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        ([], {}, "name an experiment file: sbatch jobs/slurm.sbatch experiments/mine.yaml [KEY=VALUE …]"),
        (["tiny.yaml"], {}, f"SLURM_JOB_ID {OUTSIDE}"),
        (["tiny.yaml"], {"SLURM_JOB_ID": "1"}, f"SLURM_JOB_NUM_NODES {OUTSIDE}"),
        (["no.yaml"], {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1"}, "no.yaml: no such file in "),
        (
            ["tiny.yaml"],
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1", "RAYREID_PYTHON": "/no/python"},
            "/no/python: no such program; set RAYREID_PYTHON",
        ),
        (
            ["tiny.yaml"],
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1", "RAYREID_ROOT": "/dev/null/outputs"},
            "RAYREID_ROOT=/dev/null/outputs cannot be created",
        ),
    ],
)
def test_what_is_missing_is_one_line_and_status_2(slurm, folder, arguments, environment, told):
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=folder, env=slurm.environment | environment, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("mkdir:")]
    assert done.returncode == 2 and done.stdout == ""
    assert len(lines) == 1 and lines[0].startswith(f"slurm.sbatch: {told}")
    assert not (folder / "outputs").exists()


def test_the_program_and_its_overrides_reach_every_node_with_the_job_s_cpus(slurm, folder):
    """In place of Python, a program that shows what it was started with."""
    show = folder / "show"
    show.write_text('#!/bin/sh\necho "$SLURM_NODEID $SLURM_CPUS_ON_NODE $RAYREID_ROOT" "$@"\nls -ld "$3"\n')
    show.chmod(0o755)
    with slurm.submit(
        "--nodes=2",
        "--cpus-per-task=3",
        str(SCRIPT),
        "tiny.yaml",
        "select.fraction=0.5",
        cwd=folder,
        RAYREID_PYTHON=str(show),
    ) as job:
        said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    lines = [line for line in said.splitlines() if line[0] in "01"]
    meeting = f"{folder}/outputs/.slurm-1."
    assert sorted(line[:1] for line in lines) == ["0", "1"]
    for line in lines:
        _node, cpus, root, _, module, place, python, *rest = line.split()
        assert (cpus, root, module, python) == ("3", f"{folder}/outputs", "rayreid.execution.slurm", str(show))
        assert place.startswith(meeting) and rest == ["-m", "rayreid.cli", "run", "tiny.yaml", "select.fraction=0.5"]
    assert [line[:10] for line in said.splitlines() if meeting in line and line.startswith("d")] == ["drwx------"] * 2
    assert list((folder / "outputs").iterdir()) == []


BLOCKS = list(re.findall(r"```sh\n(.*?)```", (ROOT / "docs/slurm.md").read_text(), re.DOTALL))


@pytest.mark.parametrize(
    ("block", "nodes", "words"),
    [
        ("--gpus-per-node=4", 1, "run experiments/mine.yaml select.fraction=0.5"),
        ("sweep", 1, "sweep experiments/sweeps/subset_fraction.yaml"),
        ("--nodes=4", 4, "run experiments/mine.yaml"),
        ("--partition=preemptible", 1, "run experiments/mine.yaml"),
        ("salloc", 2, "run experiments/mine.yaml"),
        ("--pty", 1, "run experiments/mine.yaml"),
    ],
)
def test_the_commands_of_the_page_do_what_it_says(slurm, folder, block, nodes, words):
    """In place of Python and of rayreid, a program that notes what it was started with."""
    (commands,) = [one for one in BLOCKS if block in one]
    for path in ("jobs/slurm.sbatch", "experiments/sweeps/subset_fraction.yaml"):
        (folder / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, folder / path)
    (folder / "experiments/mine.yaml").touch()
    note = folder / ".venv/bin/python"
    note.parent.mkdir(parents=True)
    note.write_text(f'#!/bin/sh\necho "$SLURM_NODEID" "$@" >> {folder}/notes\n')
    note.chmod(0o755)
    shutil.copy(note, note.with_name("rayreid"))
    environment = {name: value for name, value in slurm.environment.items() if name != "RAYREID_PYTHON"}
    done = subprocess.run(
        ["bash", "-s"], input=commands, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    notes = [line for line in (folder / "notes").read_text().splitlines() if line.endswith(words)]
    assert sorted(line.split()[0] for line in notes) == [str(number) for number in range(nodes)]


def test_every_block_of_the_page_that_uses_slurm_is_tried():
    tried = ("--gpus-per-node=4", "sweep", "--nodes=4", "--partition=preemptible", "salloc", "--pty")
    untried = [one for one in BLOCKS if not any(word in one for word in tried)]
    assert not any(word in one for one in untried for word in ("sbatch", "srun", "salloc"))


def finished(folder: Path, root: str = "outputs") -> dict[str, list[dict]]:
    """The records of the artifacts of each stage."""
    found: dict[str, list[dict]] = {}
    for path in (folder / root).glob("*/*/artifact.json"):
        found.setdefault(path.parts[-3], []).append(json.loads(path.read_text()))
    return found


def reached(folder: Path, step: int, job: subprocess.Popen[str]) -> None:
    """Wait until the job's training has a checkpoint of a step or later."""
    wait_until(lambda: newest_step(folder / "outputs") >= step or job.poll() is not None, 240)
    assert job.poll() is None, job.stdout.read()


def states(folder: Path) -> dict[str, str]:
    client = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return {run.info.run_name: run.info.status for run in runs}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
def test_two_jobs_of_two_nodes_and_another_ray_on_one_machine_do_not_meet(slurm, folder, tmp_path):
    """The other Ray has the ports and the folder that Ray takes by default, as that of another user may.

    One after another: Ray waits half a minute for the processes of a node, and two cores start those of five slowly.
    """
    ours = ["--nodes=2", "--cpus-per-task=1", str(SCRIPT)]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with started(tmp_path / "others", **token) as other:
        other.wait_until_up()
        train, store = ["pretrain", "tiny.yaml"], ["ingest", "tiny.yaml"]
        with slurm.submit(*ours, *train, cwd=folder, RAYREID_ROOT="one", RAY_ADDRESS="127.0.0.1:9") as one:
            wait_until(lambda: list(folder.glob("one/ingest/*")) or one.poll() is not None, 240)
            with slurm.submit(*ours, *store, cwd=folder, RAYREID_ROOT="two", RAYREID_PORTS="20000-21999") as two:
                said = [job.communicate(timeout=480)[0] for job in (one, two)]
        assert other.ask(folder, "list").returncode == 0  # no job has ended it
    assert (one.returncode, two.returncode) == (0, 0), "".join(said)[-6000:]
    (record,) = finished(folder, "one")["pretrain"]
    assert record["facts"]["resumed"] is False and record["facts"]["workers"] == 2
    assert len(finished(folder, "two")["ingest"]) == 2  # the pool and the target
    assert not list(folder.glob("*/.slurm-*"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_of_two_nodes_near_its_time_limit_is_requeued_and_resumes(slurm, folder, long_file):
    with slurm.submit("--nodes=2", "--cpus-per-task=1", str(SCRIPT), "pretrain", "tiny.yaml", cwd=folder) as job:
        reached(folder, 5, job)
        assert slurm.call("scancel", "--signal=USR1", "--batch", "1").returncode == 0
        said, _ = job.communicate(timeout=400)
    assert job.returncode == 0, said[-6000:]
    assert "job 1 goes back into the queue" in said and "Traceback" not in said, said[-6000:]
    (record,) = finished(folder)["pretrain"]
    assert record["facts"]["resumed"] is True
    assert states(folder) == {"tiny": "FINISHED", "ingest": "FINISHED", "pretrain": "FINISHED"}
    assert not list((folder / "outputs").glob(".slurm-*"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
def test_a_job_that_lost_its_node_resumes_when_it_is_submitted_again(slurm, folder, long_file):
    ours = ["--cpus-per-task=2", str(SCRIPT), "pretrain", "tiny.yaml"]
    with slurm.submit(*ours, cwd=folder) as job:
        reached(folder, 5, job)
        assert slurm.call("scancel", "--signal=KILL", "1").returncode == 0
        job.communicate(timeout=60)
    assert job.returncode != 0 and "pretrain" not in finished(folder)
    with slurm.submit(*ours, cwd=folder) as again:
        said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said[-6000:]
    (record,) = finished(folder)["pretrain"]
    assert record["facts"]["resumed"] is True


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
def test_a_preempted_job_of_one_node_ends_soon_as_killed_and_is_not_requeued_by_itself(slurm, folder, long_file):
    with slurm.submit("--cpus-per-task=2", str(SCRIPT), "pretrain", "tiny.yaml", cwd=folder) as job:
        reached(folder, 5, job)
        assert slurm.call("scancel", "1").returncode == 0
        said, _ = job.communicate(timeout=90)
    assert job.returncode == 130 and "interrupted; run the same command again to resume" in said, said[-6000:]
    assert states(folder)["pretrain"] == "KILLED"
    assert not list((folder / "outputs").glob(".slurm-*"))


@pytest.mark.ray
@pytest.mark.slow
def test_no_free_port_ends_a_job_of_two_nodes_with_one_line_and_status_2(slurm, folder):
    import socket

    with socket.create_server(("127.0.0.1", 14003)):
        ours = ["--nodes=2", "--cpus-per-task=1", str(SCRIPT), "pretrain", "tiny.yaml"]
        with slurm.submit(*ours, cwd=folder, RAYREID_PORTS="14000-14499") as job:
            said, _ = job.communicate(timeout=120)
    assert job.returncode == 2
    assert said.count("rayreid: RAYREID_PORTS=14000-14499: each block of 500 ports") == 2, said
    assert "Traceback" not in said
