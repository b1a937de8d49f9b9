"""What a node of a Slurm job reads of its place, and how the nodes find one another."""

import os
import socket
from types import SimpleNamespace

import pytest

from rayreid.errors import UserError
from rayreid.execution import slurm
from rayreid.execution.slurm import Place, main, own_address, run_on_node

VARIABLES = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_NTASKS": "2"}


@pytest.fixture
def run(monkeypatch):
    """What is started, in place of it: how, and with which arguments."""
    started = []
    monkeypatch.setattr(slurm, "run_here", lambda command: started.append(command) or 0)
    monkeypatch.setattr(slurm, "symmetric_run", lambda *arguments: started.append(arguments) or 130)
    monkeypatch.setattr(slurm, "reread_authentication", lambda: None)
    for name in [*VARIABLES, "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"]:
        monkeypatch.setenv(name, "")  # restored in the end, whatever is set meanwhile
        monkeypatch.delenv(name)
    return started


def test_the_place_is_that_of_srun():
    assert Place.of(VARIABLES) == Place(17, 2, 1)


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [None, "", "node1"])
def test_a_missing_variable_is_one_line_and_status_2(run, monkeypatch, capsys, name, value):
    for one, said in VARIABLES.items():
        monkeypatch.setenv(one, said)
    monkeypatch.delenv(name)
    if value is not None:
        monkeypatch.setenv(name, value)
    assert main(["folder", "true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rayreid: {name}: not set by srun here; start jobs/slurm.sbatch") and said.count("\n") == 1


def test_several_tasks_per_node_are_refused():
    with pytest.raises(UserError, match=r"4 tasks on 2 nodes.*--ntasks-per-node=1"):
        Place.of({**VARIABLES, "SLURM_NTASKS": "4"})


def test_no_command_is_the_usage_and_status_2(run, capsys):
    assert main(["folder"]) == 2 and "usage:" in capsys.readouterr().err


def test_a_single_node_starts_a_private_ray_whatever_the_user_s_address(run, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert run_on_node(Place(17, 1, 0), tmp_path, ["rayreid", "run"]) == 0
    assert run == [["rayreid", "run"]] and "RAY_ADDRESS" not in os.environ
    assert list(tmp_path.iterdir()) == []  # no token where none is needed


def test_the_head_shares_its_address_and_a_token_that_only_the_user_reads(run, monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "own_address", lambda environment: "10.1.2.3")
    monkeypatch.setattr(slurm, "usable_cpus", lambda: 8)
    monkeypatch.setenv("RAYREID_PORTS", "14000-15499")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a user's own")
    assert run_on_node(Place(4, 2, 0), tmp_path, ["rayreid", "run"]) == 130
    token = tmp_path / "token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token" and os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert "RAY_AUTH_TOKEN" not in os.environ
    ((address, nodes, head, options, folder, command),) = run
    assert (address, nodes, head, command) == ("10.1.2.3:14501", 2, True, ["rayreid", "run"])
    assert {
        "--num-cpus=8",
        "--include-dashboard=false",
        "--ray-client-server-port=14502",
        "--min-worker-port=14509",
    } <= set(options)
    assert not folder.exists()  # it goes with the job

    monkeypatch.setattr(slurm, "answers", lambda address: address == "10.1.2.3:14501")
    assert run_on_node(Place(4, 2, 1), tmp_path, ["rayreid", "run"]) == 130
    address, _, head, options, _, _ = run[1]
    assert (address, head) == ("10.1.2.3:14501", False) and "--include-dashboard=false" not in options


def test_a_node_stops_waiting_for_a_head_that_ended_or_does_not_come(run, monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "_MEETING_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"did not write its address .*RAYREID_ROOT"):
        run_on_node(Place(4, 2, 1), tmp_path, ["true"])
    (tmp_path / "address").write_text("127.0.0.1:9")
    with pytest.raises(UserError, match=r"did not answer at 127.0.0.1:9.*firewall"):
        run_on_node(Place(4, 2, 1), tmp_path, ["true"])
    (tmp_path / "status").write_text("2\n")
    with pytest.raises(UserError, match="first node ended before Ray started"):
        run_on_node(Place(4, 2, 1), tmp_path, ["true"])


@pytest.mark.parametrize(("node", "written"), [("0", ["status"]), ("1", [])])
def test_the_first_node_alone_writes_the_job_s_status(run, monkeypatch, tmp_path, node, written):
    for name, value in {**VARIABLES, "SLURM_NODEID": node}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "run_on_node", lambda *_: 130)
    assert main([str(tmp_path), "true"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == written


@pytest.mark.parametrize(
    ("launched", "resolved", "chosen"),
    [
        ("10.0.0.5", "10.9.9.9", "10.0.0.5"),
        ("10.0.0.99", "192.168.7.5", "192.168.7.5"),  # salloc on a login node launched the step
        ("", "127.0.1.1", "10.0.0.77"),  # Debian's name of itself
        ("127.0.0.1", None, "10.0.0.77"),
    ],
)
def test_the_address_is_one_by_which_others_reach_this_node(monkeypatch, launched, resolved, chosen):
    own = {
        "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
        "eth0": [SimpleNamespace(family=socket.AF_INET, address="10.0.0.5")],
        "ib0": [SimpleNamespace(family=socket.AF_INET, address="192.168.7.5")],
    }

    def look_up(name):
        if resolved is None:
            raise socket.gaierror("no such host")
        return resolved

    monkeypatch.setattr(slurm.psutil, "net_if_addrs", lambda: own)
    monkeypatch.setattr(socket, "gethostbyname", look_up)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.0.0.77")
    assert own_address({"SLURM_LAUNCH_NODE_IPADDR": launched, "SLURMD_NODENAME": "gpu1"}) == chosen
