"""Ray's `symmetric-run` on machines that others use: its steps, with programs of no consequence in place of Ray."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from ray.scripts import symmetric_run as script

from rayreid.errors import UserError
from rayreid.execution import symmetric_run as module
from rayreid.execution.symmetric_run import Program, answers, run_here, symmetric_run

ADDRESS = "10.1.2.3:20001"
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def ray_start(monkeypatch, tmp_path):
    """Programs that run in place of `ray start`, with the options that it was asked for."""
    asked, programs = [], [["true"]]

    def start(self, *options):
        asked.append(list(options))
        environment = {**os.environ, module._MARK: str(self._folder)}
        with self._log.open("wb") as log:
            return subprocess.Popen(programs[-1], env=environment, stdout=log, stderr=log)

    monkeypatch.setattr(module._Node, "_ray_start", start)
    monkeypatch.setattr(script, "check_head_node_ready", lambda address: True)
    monkeypatch.setattr(script, "check_cluster_ready", lambda nodes: True)
    for name in ("RAY_ADDRESS", "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"):
        monkeypatch.setenv(name, "")
    start.asked, start.programs = asked, programs
    return start


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize(("program", "status"), [(["true"], 0), (["sh", "-c", "exit 3"], 3)])
def test_the_head_starts_ray_and_returns_the_program_s_status(ray_start, tmp_path, nodes, program, status):
    assert symmetric_run(ADDRESS, nodes, True, ["--num-cpus=4"], tmp_path, program) == status
    (options,) = ray_start.asked
    assert options == ["--head", "--node-ip-address=10.1.2.3", "--port=20001", f"--temp-dir={tmp_path}", "--num-cpus=4"]
    assert os.environ["RAY_ADDRESS"] == ADDRESS  # the program's cluster


def test_another_node_joins_and_stays_until_the_head_has_gone(ray_start, monkeypatch, tmp_path):
    ray_start.programs.append(SLEEPER)
    left = [None, None, ConnectionRefusedError()]
    monkeypatch.setattr(module, "refusal_of", lambda address: left.pop(0))
    monkeypatch.setattr(module, "_REFUSED_SECONDS", 0.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    began = time.monotonic()
    assert symmetric_run(ADDRESS, 2, False, [], tmp_path, ["false"]) == 0
    assert left == [] and time.monotonic() - began < 30
    assert ray_start.asked == [["--address", ADDRESS, "--block", f"--temp-dir={tmp_path}"]]


@pytest.mark.parametrize("head", [True, False])
def test_a_ray_that_does_not_start_is_one_line_with_its_reason(ray_start, monkeypatch, tmp_path, head):
    ray_start.programs.append(["sh", "-c", "echo Traceback; echo 'OSError: /tmp is full'; exit 1"])
    monkeypatch.setattr(module, "answers", lambda address: True)
    with pytest.raises(
        UserError, match=rf"^Ray could not be started on {socket.gethostname()}: OSError: /tmp is full$"
    ):
        symmetric_run(ADDRESS, 2, head, [], tmp_path, ["true"])


def test_a_node_that_does_not_join_is_one_line_too(ray_start, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "check_cluster_ready", lambda nodes: False)
    with pytest.raises(UserError, match="on 2 nodes: Timed out waiting for other nodes to start"):
        symmetric_run(ADDRESS, 2, True, [], tmp_path, ["true"])


def test_the_end_stops_what_the_node_has_started_and_nothing_else(ray_start, tmp_path):
    """`ray start` leaves its servers behind, of other users and jobs, too."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    environments = [{**os.environ, module._MARK: str(tmp_path / name)} for name in ("own", "other")]
    own, other = (subprocess.Popen(SLEEPER, env=environment) for environment in environments)
    try:
        assert symmetric_run(ADDRESS, 1, True, [], tmp_path / "own", ["true"]) == 0
        assert own.wait(10) is not None and other.poll() is None
    finally:
        for process in (own, other):
            process.kill()
            process.wait()


def test_ray_s_command_and_this_process_are_as_they_were(ray_start, tmp_path):
    before = {name: getattr(script, name) for name in ("check_ray_already_started", "subprocess", "psutil")}
    handler, arguments = signal.getsignal(signal.SIGTERM), sys.argv
    symmetric_run(ADDRESS, 1, True, [], tmp_path, ["true"])
    assert before == {name: getattr(script, name) for name in before}
    assert signal.getsignal(signal.SIGTERM) is handler and sys.argv is arguments


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_interrupts_the_program_and_waits_for_its_end(tmp_path, number):
    program = (
        "import time, pathlib\n"
        "try:\n    pathlib.Path('begun').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5); pathlib.Path('ended').touch(); raise SystemExit(130)"
    )
    code = (
        "import sys\nfrom rayreid.execution.symmetric_run import run_here\n"
        f"sys.exit(run_here([sys.executable, '-c', {program!r}]))"
    )
    # As in a shell's background, where children ignore Ctrl-C.
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    ) as runner:
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        runner.send_signal(number)
        runner.send_signal(number)  # Slurm may repeat it
        assert runner.wait(60) == 130
    assert (tmp_path / "ended").exists()


def test_a_program_that_a_signal_killed_has_the_status_of_a_shell():
    assert run_here(["sh", "-c", "kill -KILL $$"]) == 128 + signal.SIGKILL


def test_a_signal_before_the_program_runs_ends_the_start():
    with pytest.raises(KeyboardInterrupt):
        Program().stop()


def test_a_signal_while_ray_starts_is_an_interruption(ray_start, monkeypatch, tmp_path):
    ran = tmp_path / "ran"
    monkeypatch.setattr(script, "check_cluster_ready", lambda nodes: os.kill(os.getpid(), signal.SIGTERM) or True)
    assert symmetric_run(ADDRESS, 2, True, [], tmp_path, ["touch", str(ran)]) == 130
    assert not ran.exists()


def test_what_listens_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert answers(address)
    assert not answers(address)


def test_a_head_has_gone_only_if_it_is_away_for_long(monkeypatch):
    clock, silent, refused = [0.0], TimeoutError(), ConnectionRefusedError()
    refusals = [silent, None, silent, refused, None, refused]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "refusal_of", lambda address: refusals[0])
    absence = module.Absence(ADDRESS)
    while len(refusals) > 1:  # for a moment, again and again
        assert not absence.lasts()
        clock[0] += 2.0
        refusals.pop(0)
    assert not absence.lasts()
    clock[0] += 3.0
    assert absence.lasts()
    refusals[0] = None
    assert not absence.lasts()
    refusals[0] = silent
    assert not absence.lasts()
    clock[0] += 59.0
    assert not absence.lasts()
    clock[0] += 1.0
    assert absence.lasts()
