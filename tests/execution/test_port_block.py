"""Blocks of ports: each job of a machine has one, of whichever user, and only while it lives."""

import socket
import subprocess
import sys

import pytest

from rayreid.errors import UserError
from rayreid.execution.port_block import claimed


@pytest.fixture
def within(monkeypatch):
    """A range of three blocks that nothing else uses here, away from the usual one."""
    monkeypatch.setenv("RAYREID_PORTS", "14000-15499")


def test_jobs_with_the_same_number_get_blocks_of_their_own(within):
    with claimed(0) as one, claimed(3) as another:
        assert (one.first, another.first) == (14000, 14500)
    with claimed(0) as again:
        assert again.first == 14000


def test_all_ports_lie_within_the_block_and_none_is_named_twice(within):
    with claimed(1) as block:
        options = dict(option.split("=") for option in block.options)
    ports = [block.first, block.head, block.client, *map(int, options.values())]
    assert len(set(ports)) == len(ports) == 11
    assert min(ports) == 14500 and max(ports) == 14999 == int(options["--max-worker-port"])
    assert int(options["--max-worker-port"]) - int(options["--min-worker-port"]) > 400  # a process per CPU of a node


def test_a_block_is_free_again_when_its_process_was_killed(within):
    code = "from rayreid.execution.port_block import claimed\nwith claimed(0): print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with claimed(0) as block:
            assert block.first == 14500
        other.kill()
        other.wait()
    with claimed(0) as block:
        assert block.first == 14000


@pytest.mark.parametrize("used", [14000, 14001, 14005])
def test_a_block_with_a_port_in_use_is_left_out(within, used):
    with socket.create_server(("127.0.0.1", used)), claimed(0) as block:
        assert block.first == 14500


def test_no_free_block_is_one_line_that_names_the_range(monkeypatch):
    monkeypatch.setenv("RAYREID_PORTS", "14000-14499")
    with (
        socket.create_server(("127.0.0.1", 14003)),
        pytest.raises(UserError, match=r"RAYREID_PORTS=14000-14499.*in use"),
        claimed(7),
    ):
        pass


@pytest.mark.parametrize(
    "said", ["", "20000", "2000-20", "80-9000", "64000-70000", "20000-20100", "a-b", "20000-31999 "]
)
def test_a_range_is_checked(monkeypatch, said):
    monkeypatch.setenv("RAYREID_PORTS", said)
    if not said:  # as if it were not set
        with claimed(0) as block:
            assert 20000 <= block.first < 32000
        return
    with pytest.raises(UserError, match=r"RAYREID_PORTS=.*at least 500 ports"), claimed(0):
        pass
