import importlib
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rayreid.cli import app
from rayreid.console import Screen
from rayreid.diagnostics.doctor import compared, doctor, node, pins, python, room
from rayreid.diagnostics.node_health import Examination, Host
from rayreid.execution.nodes import Answer
from rayreid.execution.shared_storage import token
from rayreid.tracking.tracker import Tracker

module = importlib.import_module("rayreid.diagnostics.doctor")
machine = importlib.import_module("rayreid.diagnostics.node_health")
GIB = 2**30
HERE = {"torch": "2.12.1", "ray": "2.60.0"}


def host(**changes) -> Host:
    found = {"python": "3.11.9", "versions": HERE, "cuda": "12.6", "gpus": [], "faiss": "1.15.1 on the CPU"}
    return Host(**{**found, "free": 80 * GIB, "faults": [], **changes})


def said_of(value=None, error="", gpus=0):
    resources = {"CPU": 8.0, **({"GPU": float(gpus)} if gpus else {})}
    return list(node(Answer("10.0.0.2", resources, value, error), HERE))


def test_the_tested_versions_are_the_repository_s_pins():
    tested = pins(Path(__file__).parents[2] / "constraints.txt")
    assert {"torch", "ray", "mlflow", "faiss-gpu"} <= set(tested)
    assert tested["ray"] == "2.60.0"
    assert module._TESTED.exists()


def test_versions_are_compared_without_a_build_s_suffix(tmp_path):
    assert compared({"torch": "2.12.1+cu126", "ray": "2.60.0"}, {**HERE, "mypy": "2"}).mark == "ok"
    other = compared({"torch": "2.13.1", "ray": "2.60.0"}, HERE)
    assert other.mark == "note" and "torch 2.13.1 (tested: 2.12.1)" in other.text and "constraints.txt" in other.text
    assert "ray" not in other.text
    assert pins(tmp_path / "none") == {} and compared(HERE, {}).mark == "note"


def test_python_is_new_enough_or_not():
    assert python((3, 11, 0)).mark == "ok"
    assert python((3, 10, 9)).mark == "bad" and "3.11" in python((3, 10, 9)).text


@pytest.mark.parametrize(("free", "mark"), [(100 * GIB, "ok"), (5 * GIB, "note"), (GIB, "bad")])
def test_room_for_outputs(free, mark):
    found = room(Path("/o"), free)
    assert found.mark == mark and f"{free / GIB:.1f} GiB free" in found.text
    assert ("make room" in found.text) == (mark != "ok")


def test_a_node_that_is_well_is_one_line():
    (found,) = said_of(host(gpus=["L4", "L4"]), gpus=2)
    assert found.mark == "ok" and found.subject == "node 10.0.0.2"
    assert found.text == "8 CPUs, 2 × L4; faiss 1.15.1 on the CPU; 80 GiB free for Ray"


def test_a_node_without_the_extra_faiss_is_well():
    (found,) = said_of(host(faiss=""))
    assert found.mark == "ok" and "; no faiss; " in found.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"error": "no answer within 60 s"}, "no answer within 60 s; see ray status"),
        ({"value": host(faults=["does not see RAYREID_ROOT=/o"])}, "does not see RAYREID_ROOT=/o"),
        ({"value": host(cuda=None), "gpus": 1}, "Ray counts 1 GPUs, torch sees 0 and is built without support"),
        ({"value": host(), "gpus": 2}, "Ray counts 2 GPUs, torch sees 0 and is built for CUDA 12.6"),
        ({"value": host(versions={"torch": "2.11.0"})}, "other versions than here: torch 2.11.0, no ray; install"),
    ],
)
def test_a_node_with_a_fault_says_which(answer, expected):
    (found,) = said_of(**answer)
    assert found.mark == "bad" and expected in found.text


def test_a_gpu_that_fails_is_told_once():
    failing = host(gpus=["L4"], faults=["GPU 1: out of memory; see nvidia-smi"])
    assert [found.text for found in said_of(failing, gpus=2)] == failing.faults


def test_this_machine_is_examined(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    with token() as made:
        found = Examination(["torch", "no-such-package"], made)()
    assert set(found.versions) == {"torch"} and found.faiss and found.free > 0
    assert [fault for fault in found.faults if "RAYREID" in fault or "faiss" in fault] == []


def test_wrong_neighbours_are_a_fault_and_a_full_disk_is_worth_knowing(monkeypatch):
    def wrong(points, k, engine):
        from rayreid.neighbours.knn import nearest

        found = nearest(points, k, engine)
        found.rows[:, 1] = 0
        return found

    monkeypatch.setattr(machine, "nearest", wrong)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=100, used=96, free=4))
    found = Examination([], None)()
    assert any("wrong neighbours" in fault for fault in found.faults)
    (note,) = found.notes
    assert "95 % full" in note and not any("95 % full" in fault for fault in found.faults)


def test_what_is_worth_knowing_of_a_node_stands_beside_that_it_is_well():
    note, well = said_of(host(notes=["/tmp is more than 95 % full"]))
    assert (note.mark, note.text) == ("note", "/tmp is more than 95 % full")
    assert well.mark == "ok"


def test_a_folder_for_copies_of_shards_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "cache"))
    assert not any("RAYREID_CACHE" in fault for fault in Examination([], None)().faults)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "file" / "cache"))
    (fault,) = (fault for fault in Examination([], None)().faults if "RAYREID_CACHE" in fault)
    assert fault.startswith(f"RAYREID_CACHE={tmp_path}/file/cache: Not a directory")


def test_mlflow_is_written_to_and_left_without_a_run(tmp_path, new_database, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    new_database(tmp_path)
    found = module.mlflow(tmp_path)
    assert found.mark == "ok" and f"sqlite:///{tmp_path}/mlflow.db" in found.text
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.search_runs([client.get_experiment_by_name("doctor").experiment_id]) == []


def look(monkeypatch, answers=None) -> tuple[bool, str]:
    """The doctor's verdict and words, with a cluster that answers so."""
    monkeypatch.setattr(module, "_cluster", lambda here, written: iter(answers or []))
    written = StringIO()
    well = doctor(Screen(Console(file=written, width=1000)))
    return well, written.getvalue()


def test_a_server_that_is_away_and_data_that_are_not_there_are_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2**42, used=0, free=2**42))
    well, said = look(monkeypatch)
    assert not well and "2 to fix" in said
    (line,) = [line for line in said.splitlines() if "MLflow" in line]
    assert line.startswith("✗") and "http://127.0.0.1:9" in line
    assert "✗ data" in said and "is not a folder" in said and "✓ outputs" in said
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_root_that_cannot_be_made_is_told_and_the_nodes_are_asked_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "file" / "outputs"))
    well, said = look(monkeypatch, said_of(host()))
    assert not well and "✗ outputs" in said and "RAYREID_ROOT" in said and "✓ node 10.0.0.2" in said


def test_the_places_of_moved_outputs_are_mended_and_told(tmp_path, new_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new = tmp_path / "old", tmp_path / "new"
    new_database(old)
    Tracker(old, "trials")
    old.rename(new)
    monkeypatch.setenv("RAYREID_ROOT", str(new))
    well, said = look(monkeypatch)
    assert not well and "doctor --fix-locations" in said
    monkeypatch.setattr(module, "doctor", lambda verify, **options: not verify)
    told = CliRunner().invoke(app, ["doctor", "--fix-locations"])
    assert told.exit_code == 0 and CliRunner().invoke(app, ["doctor", "--verify"]).exit_code == 1
    assert told.output.replace("\n", "") == f"locations of artifacts changed from {old}/mlartifacts to {new}: 1"
    assert "no other place" in CliRunner().invoke(app, ["doctor", "--fix-locations"]).output


def test_a_root_that_cannot_be_written_is_told_in_words(tmp_path, monkeypatch):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    monkeypatch.setattr("rayreid.execution.shared_storage.write_atomically", refuse)
    well, said = look(monkeypatch)
    assert not well and f"✗ outputs    {tmp_path}: access is refused (Permission denied)" in said


@pytest.mark.parametrize(("well", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_says_whether_all_is_well(monkeypatch, well, status):
    monkeypatch.setattr(module, "doctor", lambda **options: well)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == status


@pytest.mark.ray
def test_a_machine_of_one_s_own_is_told_of(tmp_path, new_database, no_shared_ray, monkeypatch):
    new_database(tmp_path / "outputs")
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    for name in ("RAYREID_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    written = StringIO()
    assert doctor(Screen(Console(file=written, width=1000)))
    assert "✓ Ray        started here" in written.getvalue()
    assert "✓ node " in written.getvalue() and "(head)" in written.getvalue()
