import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayreid import files
from rayreid.config import Pretrain
from rayreid.errors import UserError
from rayreid.files import guard_of, guarded, make_folder, remove_temporaries, write_atomically
from rayreid.paths import data_path, output_root
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.lease import LeaseLostError
from rayreid.storage.metrics_log import Journal


def artifact(root=Path("/outputs"), stage="pretrain", version=1, fields=None, inputs=None, job=None) -> Artifact:
    return Artifact(root, stage, version, {"epochs": 3} if fields is None else fields, inputs or {}, job)


@pytest.fixture
def environment(monkeypatch):
    """No variable of ours is set."""
    for name in ("RAYREID_ROOT", "RAYREID_DATA", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# Identity


def test_an_id_is_twelve_hexadecimal_digits_and_names_the_folder():
    made = artifact()
    assert len(made.id) == 12 and int(made.id, 16) >= 0
    assert made.path == Path("/outputs/pretrain") / made.id
    assert str(made) == f"pretrain/{made.id}"


def test_an_id_is_the_same_in_another_process_and_on_another_day():
    assert artifact().id == "2162c5a499a0"


def test_an_id_changes_with_all_that_changes_the_result():
    pool, other = artifact(stage="ingest"), artifact(stage="ingest", fields={"root": "b"})
    made = [
        artifact(),
        artifact(stage="finetune"),
        artifact(version=2),
        artifact(fields={"epochs": 4}),
        artifact(fields={"epochs": 3, "seed": 0}),
        artifact(inputs={"pool": pool}),
        artifact(inputs={"pool": other}),
        artifact(inputs={"target": pool}),
    ]
    assert len({a.id for a in made}) == len(made)


def test_an_id_changes_with_inputs_of_inputs():
    def chain(seed: int) -> Artifact:
        return artifact(inputs={"model": artifact(stage="b", inputs={"pool": artifact(stage="a", fields={"s": seed})})})

    assert chain(0).id == chain(0).id != chain(1).id


def test_an_id_does_not_change_with_runtime_fields_place_job_or_order():
    assert artifact(fields=Pretrain(checkpoint_minutes=1).identity()).id == artifact(fields=Pretrain().identity()).id
    assert artifact(root=Path("/elsewhere")).id == artifact().id
    assert artifact(job=print).id == artifact().id
    assert artifact(job=print) == artifact()
    assert artifact(fields={"a": 1, "b": 2}).id == artifact(fields={"b": 2, "a": 1}).id


# Completeness


def test_an_artifact_is_complete_only_once_it_is_finished(tmp_path):
    made = artifact(tmp_path)
    assert not made.complete
    with made.writing() as folder:
        assert folder == made.path and folder.is_dir()
        (folder / "weights").write_text("…")
        assert not made.complete
    assert not made.complete
    made.finish({"loss": 0.5})
    assert made.complete and artifact(tmp_path).complete


def test_facts_come_back_and_the_recipe_stands_beside_them(tmp_path):
    made = artifact(tmp_path, inputs={"pool": artifact(tmp_path, "ingest")})
    with pytest.raises(UserError, match=made.id):
        _ = made.facts
    make_folder(made.path)
    made.finish({"loss": 0.5, "images": 7})
    assert artifact(tmp_path, inputs={"pool": artifact(tmp_path, "ingest")}).facts == {"loss": 0.5, "images": 7}
    written = json.loads((made.path / "artifact.json").read_text())
    assert written["id"] == made.id
    assert written["recipe"]["inputs"] == {"pool": artifact(tmp_path, "ingest").id}


def test_who_lost_the_lease_cannot_finish(tmp_path):
    made = artifact(root=tmp_path)
    with made.writing() as folder:
        (folder / "lease.json").write_text(json.dumps({"token": "t", "host": "another", "pid": 1}))
        with pytest.raises(UserError, match="took this artifact over"):
            made.finish({})
    assert not made.complete


def taken_over(folder: Path) -> None:
    """Another machine's run holds the lease, and has begun."""
    (folder / "lease.json").write_text(json.dumps({"token": "t", "host": "another", "pid": 1, "started": 1}))
    remove_temporaries(folder)


def test_who_lost_the_lease_writes_nothing(tmp_path):
    made = artifact(root=tmp_path)
    with made.writing() as folder:
        write_atomically(folder / "weights", "mine")
        fence = guard_of(folder)
        taken_over(folder)
        with pytest.raises(LeaseLostError, match=r"took this artifact over.*run again"):
            write_atomically(folder / "weights", "not mine any more")
        with pytest.raises(LeaseLostError), guarded(folder, pickle.loads(pickle.dumps(fence))):  # as in a worker
            write_atomically(folder / "sub", "either")
        (folder / "lease.json").unlink()
        (folder / "lease.json").mkdir()  # whatever it is, it is not its own
        with pytest.raises(LeaseLostError):
            write_atomically(folder / "weights", "not mine any more")
    assert (folder / "weights").read_text() == "mine"
    write_atomically(folder / "weights", "no lease is asked for outside")


def test_who_is_stopped_between_the_check_and_the_renaming_finds_nothing_to_rename(tmp_path, monkeypatch):
    made = artifact(root=tmp_path)
    with made.writing() as folder:
        check = files.check_guards

        def check_and_sleep(path):
            check(path)
            taken_over(folder)

        monkeypatch.setattr(files, "check_guards", check_and_sleep)
        with pytest.raises(FileNotFoundError):
            write_atomically(folder / "weights", "mine")
    assert not (folder / "weights").exists()


def test_an_artifact_is_finished_once(tmp_path):
    made = artifact(tmp_path)
    with made.writing():
        made.finish({"by": 1})
        with pytest.raises(LeaseLostError, match="another run has finished this artifact"):
            made.finish({"by": 2})
    assert made.facts == {"by": 1}


@pytest.mark.parametrize("damage", [None, "", "{}", "[" * 2000, '{"number": "x"}'])
def test_each_writer_has_a_higher_number_than_those_before(tmp_path, damage):
    made, numbers = artifact(tmp_path), []
    for _ in range(3):
        with made.writing() as folder:
            (folder / "kept").touch()
            numbers.append(guard_of(folder).number)
            if damage is not None and len(numbers) == 2:
                (folder / ".writers.json").write_text(damage)
    assert numbers == sorted(set(numbers)) and numbers[0] == 1
    with made.writing():
        made.finish({})
    assert sorted(path.name for path in made.path.iterdir()) == ["artifact.json", "kept"]


ELSEWHERE = """
import os, sys
from pathlib import Path
from rayreid.errors import UserError
from rayreid.files import guard_of, write_atomically
from rayreid.storage import lease, lease_place
from rayreid.storage.artifacts import Artifact
from rayreid.storage.metrics_log import Journal
lease.here = lease_place.here = lambda: f"machine of {os.getpid()}"  # as if each were on a machine of its own
artifact = Artifact(Path(sys.argv[1]), "pretrain", 1, {"epochs": 3})
try:
    with artifact.writing() as folder:
        journal = Journal(folder / "metrics.jsonl", guard_of(folder).number)
        journal.append({"step": 0, "by": os.getpid()})
        write_atomically(folder / "weights", str(os.getpid()))
        print("begun", flush=True)
        sys.stdin.readline()
        journal.append({"step": 1, "by": os.getpid()})
        write_atomically(folder / "weights", str(os.getpid()))
        artifact.finish({"by": os.getpid()})
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.slow
def test_a_process_that_was_stopped_for_longer_than_its_lease_fails_in_one_line(tmp_path):
    def start():
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
        command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    first = start()
    assert first.stdout.readline() == "begun\n"
    first.send_signal(signal.SIGSTOP)
    second = start()
    began = time.monotonic()
    assert second.stdout.readline() == "begun\n"
    assert time.monotonic() - began > 20  # its lease had to get stale
    output, complaint = second.communicate("go on\n", timeout=60)
    assert second.returncode == 0, complaint
    first.send_signal(signal.SIGCONT)
    output, complaint = first.communicate("go on\n", timeout=60)
    assert (first.returncode, complaint) == (2, "")
    made = artifact(tmp_path)
    assert output.startswith(f"{made.path}: the lease of this run is gone: another run took this artifact over while")
    assert made.facts == {"by": second.pid} and (made.path / "weights").read_text() == str(second.pid)
    rows = Journal(made.path / "metrics.jsonl").read()[0]
    assert [(row["step"], row["by"]) for row in rows] == [(0, first.pid), (0, second.pid), (1, second.pid)]


def test_an_interrupted_writer_leaves_no_lease_and_nothing_complete(tmp_path):
    made = artifact(tmp_path)
    with pytest.raises(KeyboardInterrupt), made.writing():
        raise KeyboardInterrupt
    assert not made.complete
    assert not made.path.exists()


def test_lineage_has_inputs_first_and_each_once():
    pool = artifact(stage="ingest")
    proxy = artifact(stage="pretrain", inputs={"pool": pool})
    scores = artifact(stage="score", inputs={"pool": pool, "source": proxy})
    weights = artifact(stage="pretrain", fields={"epochs": 9}, inputs={"pool": pool, "scores": scores})
    order = list(lineage({"weights": weights, "scores": scores}).values())
    assert len(order) == 4 and set(map(str, order)) == set(map(str, [pool, proxy, scores, weights]))
    for made in order:
        assert all(order.index(needed) < order.index(made) for needed in made.inputs.values())
    assert list(lineage({"weights": weights})) == [a.id for a in order]


# Places


def test_outputs_lie_where_the_variable_says_or_here(environment, tmp_path):
    environment.chdir(tmp_path)
    assert output_root() == tmp_path / "outputs"
    environment.setenv("RAYREID_ROOT", "mine")
    assert output_root() == tmp_path / "mine"
    environment.setenv("RAYREID_ROOT", "/all/nodes")
    assert output_root() == Path("/all/nodes")
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("RAYREID_ROOT", "~/mine")
    assert output_root() == tmp_path / "mine"


def test_datasets_lie_under_the_variable_or_here(environment, tmp_path):
    environment.chdir(tmp_path)
    environment.setenv("HOME", "/home/me")
    assert data_path("market") == tmp_path / "market"
    environment.setenv("RAYREID_DATA", "/data")
    assert data_path("market") == Path("/data/market")
    assert data_path("/else/market") == Path("/else/market")
    assert data_path("~/market") == Path("/home/me/market")


def test_inside_a_job_a_relative_path_is_refused(environment, tmp_path):
    environment.chdir(tmp_path)
    environment.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="RAYREID_ROOT"):
        output_root()
    with pytest.raises(UserError, match=r"market.*RAYREID_DATA"):
        data_path("market")
    environment.setenv("RAYREID_ROOT", "mine")
    environment.setenv("RAYREID_DATA", "data")
    with pytest.raises(UserError, match="mine"):
        output_root()
    with pytest.raises(UserError, match="data/market"):
        data_path("market")


def test_inside_a_job_absolute_paths_are_taken(environment):
    environment.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    environment.setenv("RAYREID_ROOT", "/all/nodes")
    assert output_root() == Path("/all/nodes")
    assert data_path("/else/market") == Path("/else/market")
    environment.setenv("RAYREID_DATA", "/data")
    assert data_path("market") == Path("/data/market")
