import json
import re
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
RAY_START = re.compile(r"\bray start\b")
TOKEN = "~/.ray/auth_token"


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def schema():
    """The cluster launcher's own, found without importing Ray."""
    ray = find_spec("ray")
    return json.loads((Path(ray.origin).parent / "autoscaler/ray-schema.json").read_text())


def starts(cluster, kind):
    """The commands that start Ray on a node; each runs in a shell of its own."""
    return [command for command in cluster[f"{kind}_start_ray_commands"] if RAY_START.search(command)]


def test_it_is_what_rays_cluster_launcher_reads(cluster, schema):
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "no_such_key": 1}, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert all(node["max_workers"] <= cluster["max_workers"] for node in workers(cluster).values())


@pytest.mark.parametrize("kind", ["head", "worker"])
@pytest.mark.parametrize("variable", ["RAYREID_ROOT", "RAYREID_DATA", "MLFLOW_TRACKING_URI"])
def test_every_ray_start_comes_after_the_exports(cluster, kind, variable):
    commands = starts(cluster, kind)
    assert commands
    for command in commands:
        before = command[: RAY_START.search(command).start()]
        assert re.search(rf"\bexport\b[^;]*\b{variable}=", before), command


def test_all_nodes_find_data_and_outputs_at_one_absolute_place(cluster):
    commands = starts(cluster, "head") + starts(cluster, "worker")
    for variable in ("RAYREID_ROOT", "RAYREID_DATA"):
        (place,) = {re.search(rf"\b{variable}=([^\s;]+)", command)[1] for command in commands}
        mounted = "/mnt/rayreid"
        assert place.startswith(f"{mounted}/")
        assert any("mount -t nfs4 " in line and line.endswith(mounted) for line in cluster["initialization_commands"])


def test_nodes_install_the_tested_versions_from_files_that_travel(cluster):
    (install,) = [command for command in cluster["setup_commands"] if "pip install" in command]
    assert "-c constraints.txt -e '.[all]'" in install
    for remote, local in cluster["file_mounts"].items():
        if remote != TOKEN:
            assert remote == f"~/rayreid/{local}"
            assert (ROOT / local).exists(), local
    assert {"pyproject.toml", "constraints.txt", "platform"} <= set(cluster["file_mounts"].values())


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_node_has_the_token_of_this_machine_and_asks_for_it(cluster, kind):
    assert cluster["file_mounts"][TOKEN] == TOKEN
    assert all(re.search(r"\bexport RAY_AUTH_MODE=token\b", command) for command in starts(cluster, kind))


def test_a_job_that_is_stopped_has_time_to_say_so(cluster):
    (command,) = starts(cluster, "head")
    assert int(re.search(r"\bRAY_JOB_STOP_WAIT_TIME_S=(\d+)", command)[1]) >= 10


def test_the_mlflow_server_keeps_runs_and_files_on_the_shared_storage(cluster):
    (server,) = [command for command in cluster["head_start_ray_commands"] if "mlflow server" in command]
    assert "--backend-store-uri sqlite:////mnt/rayreid/" in server
    assert "--artifacts-destination /mnt/rayreid/" in server


def test_all_nodes_call_the_server_by_one_address(cluster):
    """What a worker could not deliver is delivered by who knows the same address."""
    (head,), (worker,) = starts(cluster, "head"), starts(cluster, "worker")
    assert "MLFLOW_TRACKING_URI=http://$RAY_HEAD_IP:5000" in worker
    assert "MLFLOW_TRACKING_URI=http://$(hostname -I | cut -d' ' -f1):5000" in head  # which is what workers are told


def test_the_workers_are_spot_nodes_of_which_one_stays(cluster):
    for node in workers(cluster).values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        # Without a GPU in sight `auto` would resolve to CPU workers, and no node would ever be asked for.
        assert node["min_workers"] >= 1


def workers(cluster):
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
