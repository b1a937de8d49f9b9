import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk, Disturbance
from rayreid.disk_faults import as_storage_error
from rayreid.files import make_folder
from rayreid.storage import lease as lease_module
from rayreid.storage import lease_place
from rayreid.storage.lease import Lease

PLATFORM = Path(__file__).parents[2] / "platform"
HEAD = "import os, sys\nfrom pathlib import Path\nfrom rayreid.storage.lease import Lease\n"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "lease.json"


def pid_of_the_dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(path: Path, pid: int, host: str | None = None, age: float = 0.0) -> None:
    """A lease as another process left it."""
    path.write_text(json.dumps({"token": f"token{pid}", "host": host or lease_module.here(), "pid": pid}))
    then = time.time() - age
    os.utime(path, (then, then))


def waiter(path: Path) -> tuple[threading.Thread, threading.Event]:
    """A thread that takes the lease and lets it go; the event says that it had it."""
    had = threading.Event()

    def take():
        with Lease(path, poll=0.01):
            had.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread, had


def take_within(path: Path, seconds: float) -> bool:
    thread, had = waiter(path)
    thread.join(seconds)
    return had.is_set()


def test_a_lease_says_who_holds_it_and_is_gone_afterwards(path):
    with Lease(path):
        holder = json.loads(path.read_text())
        assert (holder["host"], holder["pid"]) == (lease_module.here(), os.getpid())
    assert list(path.parent.iterdir()) == []


def test_a_lease_is_let_go_when_its_holder_fails(path):
    with pytest.raises(RuntimeError), Lease(path):
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


def test_a_lease_is_let_go_when_its_holder_is_interrupted_while_taking_it(path, monkeypatch):
    def interrupted(lease):
        raise KeyboardInterrupt

    monkeypatch.setattr(Lease, "_settled", interrupted)
    with pytest.raises(KeyboardInterrupt), Lease(path):
        pass
    assert not path.exists()


def test_a_second_holder_waits_until_it_is_released(path):
    with Lease(path):
        thread, had = waiter(path)
        assert not had.wait(0.3)
    thread.join(5)
    assert had.is_set()
    assert not path.exists()


def test_who_waits_for_a_live_holder_is_told_once(path):
    told = []
    leave(path, pid_of_the_dead())
    with Lease(path, poll=0.01, waiting=lambda: told.append("dead")):
        pass
    assert told == []
    leave(path, os.getpid())

    def waiting():
        told.append("alive")
        threading.Timer(0.05, path.unlink).start()  # after the waiter has looked again

    with Lease(path, poll=0.01, waiting=waiting):
        assert told == ["alive"]


def test_another_process_waits_as_well(path):
    program = f"{HEAD}with Lease(Path(sys.argv[1]), 0.02): print('had it')"
    with Lease(path):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "PYTHONPATH": str(PLATFORM)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
    assert process.communicate(timeout=20)[0].strip() == "had it"


def test_a_killed_process_s_lease_is_taken_over(path):
    program = f"{HEAD}Lease(Path(sys.argv[1])).__enter__(); os._exit(9)"
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    assert subprocess.run([sys.executable, "-c", program, str(path)], env=environment).returncode == 9
    assert path.exists()
    assert take_within(path, 5)


def test_a_dead_process_s_lease_is_taken_over_at_once(path):
    leave(path, pid_of_the_dead())
    assert take_within(path, 5)
    assert list(path.parent.iterdir()) == []


def test_a_process_of_another_container_of_the_same_host_name_is_not_judged_by_its_number(path, monkeypatch, tmp_path):
    """Its number is another process's here, or nobody's."""
    elsewhere = lease_module.here()
    assert elsewhere.startswith(socket.gethostname())
    (tmp_path / "pid").symlink_to("pid:[4026531836999]")
    monkeypatch.setattr(lease_place, "_PIDS", tmp_path / "pid")
    lease_module.here.cache_clear()
    try:
        assert lease_module.here() != elsewhere
        path = tmp_path / "folder" / "lease.json"
        path.parent.mkdir()
        leave(path, pid_of_the_dead(), host=elsewhere)
        assert not take_within(path, 0.3)
        assert lease_module.held_by_another(path)
        path.unlink()
    finally:
        lease_module.here.cache_clear()


def test_a_live_process_s_lease_is_not(path):
    leave(path, os.getpid())
    assert not take_within(path, 0.3)
    path.unlink()


def test_another_machine_s_lease_is_taken_over_only_when_it_is_stale(path):
    leave(path, pid_of_the_dead(), host="elsewhere", age=lease_module._STALE_SECONDS - 10)
    assert not take_within(path, 0.3)
    os.utime(path, (time.time() - lease_module._STALE_SECONDS - 1,) * 2)
    assert take_within(path, 20)


def test_a_lease_that_does_not_say_when_its_process_started_is_taken_over_once_it_is_stale(path):
    """Versions before 0.1.0 wrote it so; the number may be another process's by now."""
    leave(path, os.getpid(), age=lease_module._STALE_SECONDS + 1)
    assert take_within(path, 20)


def test_a_holder_keeps_its_lease_from_getting_stale(path, monkeypatch):
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.02)
    with Lease(path):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < time.time() - 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 60


def test_who_lost_its_lease_does_not_keep_it_alive_for_another(path, monkeypatch):
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.01)
    with Lease(path):
        leave(path, pid_of_the_dead(), age=100)
        time.sleep(0.2)
        assert path.stat().st_mtime < time.time() - 60


def test_an_error_of_the_storage_does_not_end_the_beat(path, monkeypatch):
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.01)
    beats, three = [], threading.Event()

    def utime(target):
        beats.append(target)
        if len(beats) == 3:
            three.set()
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(lease_module.os, "utime", utime)
    with Lease(path):
        assert three.wait(5)


def test_an_unreadable_lease_is_taken_over_once_it_is_stale(path):
    path.write_text("")
    assert not take_within(path, 0.2)
    os.utime(path, (1, 1))
    assert take_within(path, 20)


def test_who_lost_its_lease_does_not_remove_the_new_holder_s(path):
    first = Lease(path)
    with first:
        leave(path, os.getpid())
    assert json.loads(path.read_text())["token"] == f"token{os.getpid()}"


def test_an_onlooker_that_comes_late_to_the_burial_leaves_the_new_holder_alone(path, monkeypatch):
    """It judges the dead one, sleeps, and wakes when another has buried it and works."""
    leave(path, pid_of_the_dead())
    late, quick = Lease(path, poll=0.01), Lease(path, poll=0.01)
    judge = Lease._process_gone
    written = []

    def judge_then_sleep(self, holder):
        gone = judge(self, holder)
        if self is late:
            quick.__enter__()
            written.append(path.stat())
        return gone

    monkeypatch.setattr(Lease, "_process_gone", judge_then_sleep)
    late._bury_if_dead()
    now = path.stat()
    assert (now.st_ino, now.st_ctime_ns) == (written[0].st_ino, written[0].st_ctime_ns)  # never even moved aside
    assert json.loads(path.read_text())["token"] == quick._token
    quick.__exit__(None, None, None)
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_a_refused_holder_removes_is_made_again(tmp_path, monkeypatch):
    """Between making the folder and writing to it."""
    path, made = tmp_path / "artifact" / "lease.json", []

    def make_and_lose(folder):
        made.append(folder)
        make_folder(folder)
        if len(made) < 3:
            folder.rmdir()

    monkeypatch.setattr(lease_place, "make_folder", make_and_lose)
    with Lease(path, poll=100):
        assert path.exists() and len(made) == 3


def test_a_folder_that_goes_while_a_waiter_looks_at_the_lease_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "artifact" / "lease.json"
    path.parent.mkdir()
    leave(path, os.getpid())
    judge = Lease._process_gone

    def judge_and_lose(self, holder):
        gone = judge(self, holder)
        path.unlink()
        path.parent.rmdir()
        return gone

    monkeypatch.setattr(Lease, "_process_gone", judge_and_lose)
    assert take_within(path, 5)


def test_a_burial_that_was_itself_interrupted_is_finished_by_another(path):
    leave(path, pid := pid_of_the_dead())
    tombstone = path.with_name(f".{path.name}.token{pid}.gone")
    tombstone.touch()
    assert not take_within(path, 0.3)
    os.utime(tombstone, (1, 1))
    assert take_within(path, 20)


def test_onlookers_never_hold_it_together(path):
    """Many of them come upon a dead one's lease at once, again and again."""
    dead = pid_of_the_dead()
    inside, most, turns = 0, 0, 0
    count = threading.Lock()

    def work(start: threading.Barrier) -> None:
        nonlocal inside, most, turns
        start.wait()
        with Lease(path, poll=0.001):
            with count:
                inside += 1
                turns += 1
                most = max(most, inside)
            time.sleep(0.002)
            with count:
                inside -= 1

    for _ in range(15):
        leave(path, dead)
        start = threading.Barrier(4)
        threads = [threading.Thread(target=work, args=(start,), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert (turns, most) == (60, 1)
    assert list(path.parent.iterdir()) == []


def test_a_live_process_of_this_boot_is_never_robbed(path, monkeypatch):
    """Not even if the storage's clock has jumped by a year."""
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 1000.0)  # it stands still
    monkeypatch.setattr(lease_module, "_CONFIRM_SECONDS", 0.0)
    with Lease(path):
        os.utime(path, (1, 1))
        assert not take_within(path, 0.5)


def test_a_later_process_of_the_same_number_does_not_count_as_the_holder(path):
    path.write_text(json.dumps({"token": "t", "host": lease_module.here(), "pid": os.getpid(), "started": 1}))
    assert take_within(path, 5)


def test_a_process_that_has_ended_but_is_not_yet_reaped_is_gone(path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = lease_place.start_of(process.pid)
    while lease_place.start_of(process.pid) is not None:
        time.sleep(0.01)
    held = {"token": "t", "host": lease_module.here(), "pid": process.pid, "started": started}
    path.write_text(json.dumps(held))
    assert take_within(path, 5)
    process.wait()


def test_a_jump_of_the_storage_s_clock_robs_nobody_elsewhere(path, monkeypatch):
    """Its holder, on another machine, goes on touching the lease."""
    monkeypatch.setattr(lease_module, "_CONFIRM_SECONDS", 1.0)
    leave(path, 1, host="elsewhere")
    stopped = threading.Event()

    def beat():
        while not stopped.wait(0.2):
            os.utime(path, (1, time.time() % 1e6))  # by a clock that is years behind that of other files

    thread = threading.Thread(target=beat)
    thread.start()
    assert not take_within(path, 3)
    stopped.set()
    thread.join()
    path.unlink()


MALFORMED = [
    "{}",
    "[]",
    "3",
    "null",
    '"text"',
    "[" * 4000,
    "\udce4",
    "x" * 10_000,
    json.dumps({"token": "../../escaped", "host": "h", "pid": 1}),
    json.dumps({"token": "t", "host": 3, "pid": 1}),
    json.dumps({"token": "t", "host": lease_module.here(), "pid": 10**30}),
    json.dumps({"token": "t", "host": lease_module.here(), "pid": -1}),
    json.dumps({"token": "t", "host": lease_module.here(), "pid": True}),
    json.dumps({"token": "t", "host": lease_module.here(), "pid": 1, "started": "then"}),
]


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_lease_is_moved_aside_in_one_line(path, monkeypatch, caplog, text):
    path.write_bytes(text.encode(errors="surrogateescape"))
    os.utime(path, (1, 1))
    monkeypatch.setattr(lease_module, "_CONFIRM_SECONDS", 0.05)
    assert not lease_module.held_by_another(path)
    with Lease(path, poll=0.01):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    (line,) = caplog.messages
    assert str(path) in line and "\n" not in line
    assert [one.name.partition("-")[0] for one in path.parent.iterdir()] == ["lease.json.damaged"]
    assert [one.name for one in path.parent.parent.iterdir() if "escaped" in one.name] == []


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_moved_aside_too(path, monkeypatch, kind):
    monkeypatch.setattr(lease_module, "_CONFIRM_SECONDS", 0.05)
    if kind == "folder":
        path.mkdir()
        (path / "file").touch()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/nowhere")
    os.utime(path, (1, 1), follow_symlinks=False)
    assert take_within(path, 10)


@pytest.mark.parametrize("place", range(4))
def test_a_lease_that_does_not_fit_on_the_disk_is_named(path, place):
    root = path.parent
    with disturbed(Disk(root, Disturbance(place, "ENOSPC"))), pytest.raises(OSError, match="No space left") as told:
        Lease(path).take()
    assert str(as_storage_error(told.value, root.parent)).startswith(f"{root}: no room is left on this disk")
    assert not list(root.iterdir())


def test_a_loss_of_power_leaves_a_whole_lease_or_none(path):
    root = path.parent
    with disturbed(Disk(root)) as disk, Lease(path):
        left = [disk.left(loss).get(path.name, b"none") for loss in LOSSES.values()]
    assert {one[-1:] for one in left} == {b"e", b"}"}
