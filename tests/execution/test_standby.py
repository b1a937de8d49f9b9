"""A copy of a command serves as the fork server would that the first client starts, and ends with the command."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fork_place import FILES, MEMORY, Place, fork_place

COMMAND = """
import _thread, gc, os, sys, threading, time, types
from pathlib import Path
from rayreid.execution import standby

def compute_on(threads):
    os.environ["RAYREID_COMPUTES_ON"] = str(threads)

cuda = types.SimpleNamespace(is_available=lambda: "gpu" in sys.argv)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, set_num_threads=compute_on)
standby._MODULES = ("colorsys", "numpy")
if "ray" in sys.argv:
    sys.modules["ray"] = types.ModuleType("ray")
if "thread" in sys.argv:
    _thread.start_new_thread(time.sleep, (60,))
if "threads" in sys.argv:
    for _ in range(2):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
gc.set_threshold(10_000, 10, 10)
copy = None
try:
    try:
        standby.stand_by()
    except standby.StandBy as raised:
        copy = raised
    if copy is not None:
        copy.serve()
    print(standby._waiting is not None, flush=True)
    sys.stdin.readline()
    standby.appoint(Path(sys.argv[1]), ["wave"])
    print("appointed", flush=True)
    sys.stdin.read()
except SystemExit:
    pass
Path(sys.argv[1] + ".end").touch()
"""
"""What the command line does, with modules that are imported in no time. Ray's are not there when it is copied."""


class Command:
    """A command, which has started and perhaps been copied."""

    def __init__(self, place: Place, *kinds: str, **environment: str):
        script = place.folder / "command" / "command.py"
        script.parent.mkdir()
        script.write_text(COMMAND)
        self.place, self.folder = place, script.parent
        self.running = subprocess.Popen(
            [sys.executable, str(script), str(place.folder / "fork"), *kinds],
            env={**place.environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.copied = self.running.stdout.readline() == "True\n"

    def appoint(self) -> None:
        self.running.stdin.write("\n")
        self.running.stdin.flush()
        assert self.running.stdout.readline() == "appointed\n"

    def copies(self) -> list[psutil.Process]:
        """The processes that have the command's command line, without the command."""
        found = []
        for one in psutil.process_iter(["cmdline"]):
            if str(self.folder / "command.py") in (one.info["cmdline"] or ()) and one.pid != self.running.pid:
                found.append(one)
        return found

    def gone(self) -> bool:
        until = time.monotonic() + 20
        while self.copies() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.copies()

    def end(self) -> None:
        self.running.kill()
        self.running.communicate()


@pytest.fixture
def place():
    with fork_place() as made:
        yield made


@pytest.fixture
def start(place):
    """`start(*kinds, **environment)` starts a command beside the place."""
    commands = []

    def start(*kinds: str, **environment: str) -> Command:
        commands.append(Command(place, *kinds, **environment))
        return commands[-1]

    yield start
    for command in commands:
        command.end()


def test_the_copy_serves_with_the_variables_and_paths_of_its_first_client(place, start):
    command = start(RAY_TOLD="too early")
    assert command.copied
    command.appoint()
    own = {"RAY_TOLD": "in time", "PYTHONPATH": place.environment["PYTHONPATH"] + os.pathsep + "/elsewhere"}
    first, second = place.told("a", modules="none", **own), place.told(modules="none", **own, OMP_NUM_THREADS="2")
    [server] = command.copies()
    for told in (first, second):
        assert told["parent"] == server.pid and told["modules"] and told["main"] == "__main__"
        assert told["environment"]["RAY_TOLD"] == "in time"
        assert told["path"] == str(place.script.parent) and told["folder"] == str(place.folder)
        given = own["PYTHONPATH"].split(os.pathsep)
        begins = told["paths"].index(given[0])
        assert told["paths"][begins : begins + 2] == given and begins < told["paths"].index(
            str(Path(os.__file__).parent)
        )
        assert str(command.folder) not in told["paths"]
        assert told["group"] == told["client"] and told["thresholds"] != [10_000, 10, 10]
        assert (told["files"], told["memory"]) == (FILES, MEMORY)
    assert first["arguments"] == ["a"] and first["threads"] == 1 and first["drawn"] != second["drawn"]
    assert "RAYREID_COMPUTES_ON" not in first["environment"]
    assert second["environment"]["RAYREID_COMPUTES_ON"] == "2"
    place.manager.kill()
    assert command.gone()


def test_a_process_ends_with_its_script_and_not_with_what_follows_in_the_command(place, start):
    command = start()
    command.appoint()
    running = place.client("fail", modules="none")
    printed, errors = running.communicate(timeout=30)
    assert psutil.Process(json.loads(printed)["parent"]) in command.copies()
    assert errors == "it failed\n"
    place.manager.kill()
    assert command.gone()
    assert not place.folder.joinpath("fork.end").exists()


def test_a_signal_at_the_end_of_a_process_does_not_lead_back_into_the_command(place, start):
    """Ray's handler of SIGTERM raises SystemExit, which here comes while Python waits for a thread."""
    place.script.write_text(
        "import os, signal, sys, threading, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "later = lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))\n"
        "threading.Thread(target=later).start()"
    )
    command = start()
    command.appoint()
    place.client(modules="none").communicate(timeout=30)
    assert not place.folder.joinpath("fork.end").exists()
    place.manager.kill()
    assert command.gone()


def test_the_copy_ends_with_the_command_and_leaves_the_standard_streams_to_it(start):
    command = start()
    assert len(command.copies()) == 1
    command.running.kill()
    command.running.communicate(timeout=20)  # the end of its output: no copy holds the other end of the pipe
    assert command.gone()


def test_a_copy_that_nobody_has_asked_ends_with_the_command_too(start):
    command = start()
    command.appoint()
    assert len(command.copies()) == 1
    command.end()
    assert command.gone()


def test_where_variables_were_read_already_the_server_starts_by_itself(place, start):
    command = start(MKL_NUM_THREADS="2")
    command.appoint()
    told = place.told()
    assert told["process"] == told["client"], "its variable differs from the command's"
    assert command.gone()
    told = place.told()
    assert told["modules"] and "rayreid.execution.fork_server" in psutil.Process(told["parent"]).cmdline()


@pytest.mark.parametrize(
    ("kinds", "environment"),
    [
        (["thread"], {}),
        (["threads"], {}),
        (["gpu"], {}),
        (["ray"], {}),
        ([], {"RAY_ADDRESS": "10.0.0.1:6379"}),
        ([], {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}),
    ],
    ids=["thread", "threads", "gpu", "ray", "cluster", "job"],
)
def test_a_command_that_cannot_be_copied_is_not(start, kinds, environment):
    command = start(*kinds, **environment)
    assert not command.copied
    assert command.gone()


def test_a_command_without_standard_streams_goes_on_and_is_not_copied(place):
    script = place.folder / "command.py"
    script.write_text(
        "import sys; from pathlib import Path; from rayreid.execution import standby\n"
        "standby.stand_by(); Path(sys.argv[1]).write_text(str(standby._waiting))"
    )
    line = f"exec {shlex.join([sys.executable, str(script), str(place.folder / 'said')])} <&- >&-"
    subprocess.run(["bash", "-c", line], env=place.environment, check=True, timeout=30)
    assert place.folder.joinpath("said").read_text() == "None"


def test_where_the_copy_has_ended_the_first_client_starts_the_server(place, start):
    command = start()
    [copy] = command.copies()
    copy.kill()
    assert command.gone()
    command.appoint()
    told = place.told()
    assert told["modules"] and "rayreid.execution.fork_server" in psutil.Process(told["parent"]).cmdline()
