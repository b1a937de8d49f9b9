"""jobs/kuberay.yaml: Kubernetes' own parts by Kubernetes' schemas, pods included; KubeRay's by the fields of its API.

KubeRay's own schema lies in no package: the fields are those of its API reference (ray.io/v1) that the file uses.
"""

import copy
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
PLACES = {"RAYREID_ROOT": "/mnt/rayreid/outputs", "RAYREID_DATA": "/mnt/rayreid/data"}


def closed(required, **properties):
    """The schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
PARAMS = {"type": "object", "additionalProperties": TEXT}
POD = {"type": "object", "required": ["spec"]}
GROUP = closed(
    ["groupName", "template"],
    **{"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT},
    **{"rayStartParams": PARAMS, "template": POD},
)
RAY_CLUSTER = closed(
    ["headGroupSpec", "rayVersion"],
    rayVersion=TEXT,
    authOptions=closed(["mode"], mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed([], idleTimeoutSeconds=COUNT),
    headGroupSpec=closed(["template"], rayStartParams=PARAMS, template=POD),
    workerGroupSpecs={"type": "array", "items": GROUP},
)


@pytest.fixture(scope="module")
def documents():
    return {one["kind"]: one for one in yaml.safe_load_all((ROOT / "jobs/kuberay.yaml").read_text())}


@pytest.fixture(scope="module")
def cluster(documents):
    return documents["RayCluster"]


@pytest.fixture(scope="module")
def pods(cluster):
    head, groups = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    return {"head": head["template"], **{group["groupName"]: group["template"] for group in groups}}


def validate(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def as_pod(template):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **template}


def test_what_is_kubernetes_own_is_valid(documents):
    assert documents.keys() == {"PersistentVolumeClaim", "Deployment", "Service", "RayCluster"}
    for kind, document in documents.items():
        if kind != "RayCluster":
            validate(document)


def test_the_pods_of_ray_are_valid_and_an_unknown_field_would_be_found(pods):
    assert pods.keys() == {"head", "gpu"}
    for template in pods.values():
        validate(as_pod(template))
    wrong = copy.deepcopy(pods["gpu"])
    wrong["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(as_pod(wrong))


def test_the_ray_cluster_has_only_fields_of_kuberay_s_api(cluster):
    assert cluster["apiVersion"] == "ray.io/v1"
    jsonschema.validate(cluster["spec"], RAY_CLUSTER)
    (version,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == version
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_all_pods_find_data_outputs_and_mlflow_at_the_same_places(documents, pods):
    service = documents["Service"]
    server = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (tracking,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert f"--allowed-hosts '{server.removeprefix('http://')}," in tracking["args"][0]
    assert service["spec"]["selector"] == documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for template in pods.values():
        (container,) = template["spec"]["containers"]
        set_there = {one["name"]: one["value"] for one in container["env"]}
        assert PLACES.items() <= set_there.items() and set_there["MLFLOW_TRACKING_URI"] == server
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        (volume,) = [one for one in template["spec"]["volumes"] if one["name"] == mounts["/mnt/rayreid"]]
        assert volume["persistentVolumeClaim"]["claimName"] == documents["PersistentVolumeClaim"]["metadata"]["name"]
        assert container["image"] == tracking["image"]


def test_the_head_has_no_work_and_one_gpu_stays(cluster):
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
