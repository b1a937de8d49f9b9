"""A process that is forked for Ray is what a process that Ray starts would be, except that it begins with modules."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray._raylet import JobID, PlacementGroupID

from fork_place import FILES, MEMORY, fork_place
from rayreid.execution import fork_client, fork_server
from rayreid.execution.connection import connect


@pytest.fixture
def place():
    with fork_place() as made:
        yield made


def test_processes_are_forked_from_one_that_has_imported_the_modules(place):
    first, second = place.told("a", "b c"), place.told("d")
    assert first["parent"] == second["parent"] and first["parent"] not in (first["client"], os.getpid())
    assert first["process"] != second["process"]
    for told in (first, second):
        assert told["modules"] and told["main"] == "__main__" and told["threads"] == 1 and told["child_signal"]
        assert told["folder"] == str(place.folder) and told["path"] == str(place.script.parent)
        assert told["group"] == told["client"], "Ray ends the process group of its own process"
        assert (told["files"], told["memory"]) == (FILES, MEMORY) and told["user_site"]
        wanted = {**place.environment, "OMP_NUM_THREADS": ""}
        assert {name: told["environment"].get(name, "") for name in wanted} == wanted
    assert first["arguments"] == ["a", "b c"] and second["arguments"] == ["d"]


def test_each_has_variables_of_its_own_and_other_random_numbers(place):
    first, second = place.told(RAYREID_ANY="1", OMP_NUM_THREADS="2"), place.told(RAYREID_ANY="2")
    assert first["parent"] == second["parent"]
    assert [told["environment"]["RAYREID_ANY"] for told in (first, second)] == ["1", "2"]
    assert first["environment"]["OMP_NUM_THREADS"] == "2" and "OMP_NUM_THREADS" not in second["environment"]
    assert not set(first["drawn"]) & set(second["drawn"])


def test_a_process_whose_environment_was_read_already_starts_by_itself(place):
    place.told()
    for other in ({"RAY_JOB_ID": "02"}, {"MKL_NUM_THREADS": "1"}, {"PYTHONPATH": "/elsewhere"}):
        told = place.told(**other)
        assert told["process"] == told["client"] and not told["modules"]
        assert {name: told["environment"][name] for name in other} == other


@pytest.mark.parametrize("modules", ["no_such_module", "this,colorsys,no.such.module"])
def test_where_the_modules_cannot_be_imported_processes_start_by_themselves(place, modules):
    for _ in range(2):
        told = place.told("a", modules=modules)
        assert told["process"] == told["client"] and told["arguments"] == ["a"]


def test_options_that_ray_puts_before_the_script_are_python_s(place):
    """Ray passes on `-s`, with which it was started itself, or its user's PYTHONNOUSERSITE."""
    for modules in ("colorsys,numpy", "no_such_module"):
        told = place.told("a", options=("-s",), modules=modules)
        assert told["modules"] == (modules != "no_such_module") and told["arguments"] == ["a"]
        assert not told["user_site"]
        place.folder.joinpath("fork").unlink()


def test_clients_that_come_at_once_share_one_server(place):
    running = [place.client(str(number)) for number in range(6)]
    told = [json.loads(one.communicate(timeout=30)[0]) for one in running]
    assert len({one["parent"] for one in told}) == 1
    assert sorted(one["arguments"][0] for one in told) == [str(number) for number in range(6)]


def test_the_client_ends_with_its_process_and_passes_on_the_signal_that_ends_it(place):
    for end in (lambda process, client: os.kill(process, signal.SIGKILL), lambda process, client: client.terminate()):
        running = place.client("wait")
        told = json.loads(running.stdout.readline())
        assert running.poll() is None
        end(told["process"], running)
        running.wait(timeout=20)
        until = time.monotonic() + 20
        while psutil.pid_exists(told["process"]):
            assert time.monotonic() < until, "nobody waits for it, and the kernel does not forget it"
            time.sleep(0.01)


def test_an_error_of_the_process_is_printed_where_the_client_s_would_be(place):
    running = place.client("fail")
    assert "it failed" in running.communicate(timeout=30)[1]


def test_the_server_ends_with_the_node_manager_and_leaves_processes_to_themselves(place):
    running = place.client("wait")
    told = json.loads(running.stdout.readline())
    server = psutil.Process(told["parent"])
    place.manager.kill()
    until = time.monotonic() + 20
    while server.status() != psutil.STATUS_ZOMBIE:  # its parent, the first client, does not wait for it
        assert time.monotonic() < until, "it outlived the node manager"
        time.sleep(0.05)
    assert psutil.pid_exists(told["process"])
    running.terminate()
    running.wait(timeout=20)


def test_a_process_that_nobody_waits_for_any_more_is_not_started(place):
    """The server is stopped while a client waits for it, and finds it gone when it goes on."""
    server = place.told()["parent"]
    os.kill(server, signal.SIGSTOP)
    running = place.client("a")
    until = time.monotonic() + 20
    while not any(connection.type for connection in psutil.Process(running.pid).net_connections("unix")):
        assert time.monotonic() < until
        time.sleep(0.01)
    running.kill()
    running.wait()
    os.kill(server, signal.SIGCONT)
    assert place.told()["parent"] == server
    assert len(place.started()) == 2


def test_a_client_that_gives_up_becomes_the_process_and_there_is_no_other(place):
    server = place.told()["parent"]
    os.kill(server, signal.SIGSTOP)
    text = Path(fork_client.__file__).read_text()
    assert "_PATIENCE = 40.0" in text
    script = place.folder / "impatient.py"
    script.write_text(text.replace("_PATIENCE = 40.0", "_PATIENCE = 0.5"))
    command = [sys.executable, "-I", "-S", str(script), str(place.folder / "fork"), "colorsys", str(place.script)]
    told = subprocess.run(command, env=place.environment, cwd=place.folder, capture_output=True)
    assert json.loads(told.stdout)["parent"] == os.getpid()
    os.kill(server, signal.SIGCONT)
    assert place.told("b")["parent"] == server
    assert len(place.started()) == 3


def test_after_the_server_s_death_processes_start_by_themselves_and_wait_for_it_once(place):
    os.kill(place.told()["parent"], signal.SIGKILL)
    for _ in range(2):
        told = place.told("a")
        assert told["process"] == told["client"] and told["arguments"] == ["a"]
        assert (place.folder / "fork.ended").exists(), "each client would wait for it anew"


def test_a_file_of_the_current_folder_hides_no_module(place):
    for name in ("colorsys.py", "json.py", "rayreid.py"):
        (place.folder / name).write_text("raise SystemExit('hidden')")
    assert place.told()["modules"]


def test_a_folder_that_is_gone_is_no_obstacle(place):
    place.told()
    gone = place.folder / "gone"
    gone.mkdir()
    waiting = place.client("wait", folder=gone)
    told = json.loads(waiting.stdout.readline())
    shutil.rmtree(gone)
    command = f"cd {gone} 2>/dev/null; mkdir -p {gone}; cd {gone}; rmdir {gone}; exec " + shlex.join(
        [sys.executable, "-I", "-S", fork_client.__file__, str(place.folder / "fork"), "colorsys", str(place.script)]
    )
    done = subprocess.run(["bash", "-c", command], env=place.environment, capture_output=True, text=True, timeout=30)
    assert "FileNotFoundError" in done.stderr, "the script itself asks for its folder, as it does without the client"
    waiting.terminate()
    waiting.wait(timeout=20)
    assert told["folder"] == str(gone)


def test_without_a_path_of_its_own_python_s_is_left(place):
    told = place.told(PYTHONSAFEPATH="1")
    assert told["modules"] and str(place.script.parent) not in told["paths"]
    assert place.environment["PYTHONPATH"] in told["paths"]


def test_variables_that_are_read_late_may_differ():
    own = {"A": "1", "RAYREID_PRELOAD": "x", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
    assert fork_server.different({"A": "1", "OMP_NUM_THREADS": "4", "RAYREID_ROOT": "/b"}, own) == []
    assert fork_server.different({"A": "2", "B": ""}, own) == ["A", "B"]


@pytest.mark.ray
def test_ray_s_processes_are_forked_and_are_gone_when_the_command_ends(no_shared_ray, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    class Looking:
        def look(self):
            import torch

            drawn = [PlacementGroupID.of(JobID.from_int(1)).hex()]
            other = threading.Thread(target=lambda: drawn.append(PlacementGroupID.of(JobID.from_int(1)).hex()))
            other.start()
            other.join()
            return os.getpid(), os.getppid(), torch.get_num_threads(), "timm" in sys.modules, drawn

    with connect():
        plain = ray.remote(num_cpus=0)(Looking)
        several = plain.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}})
        actors = [plain.remote(), plain.remote(), several.remote()]
        found = ray.get([actor.look.remote() for actor in actors])
        server = psutil.Process(found[0][1])
        assert "rayreid.execution.fork_server" in server.cmdline()
        assert all(parent == server.pid and timm for _, parent, _, timm, _ in found)
        assert [threads for _, _, threads, *_ in found] == [1, 1, 2]
        lines = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                lines.append(one.cmdline())
        running = {Path(part).name for line in lines for part in line[:4]}
        assert {"gcs_server", "raylet", "fork_client.py"} <= running
        assert not {"dashboard.py", "monitor.py", "log_monitor.py"} & running, "they cost each command seconds"
        [raylet] = [" ".join(line) for line in lines if line and line[0].endswith("/raylet")]
        assert "/worker_setup.py" in raylet and "/setup_worker.py" not in raylet
        ids = [name for *_, drawn in found for name in drawn]
        assert len(set(ids)) == 6, "processes that draw the same ids take one another's placement groups and objects"
    server.wait(timeout=20)
    until = time.monotonic() + 20
    while any(psutil.pid_exists(process) for process, *_ in found):
        assert time.monotonic() < until, "a process outlived its Ray"
        time.sleep(0.1)


@pytest.mark.ray
def test_on_a_machine_with_gpus_each_process_starts_by_itself(no_shared_ray, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("rayreid.execution.connection.gpus_here", lambda: 1)
    with connect():
        assert "timm" not in ray.get(ray.remote(num_cpus=1)(lambda: list(sys.modules)).remote())
