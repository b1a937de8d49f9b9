"""The Python code in `docs/python_api.md` and `docs/publishing.md`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from demo_outputs import demo_outputs
from rayreid.data.synthetic.synthetic import Synthetic

REPO = Path(__file__).parent.parent


def code_of(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (REPO / "docs" / page).read_text(), re.DOTALL | re.MULTILINE))


@pytest.fixture
def folder(tmp_path):
    """A folder with what the pages name: an experiment file, and images."""
    dataset = Synthetic(part="target", size=(64, 32), identities=4, test_identities=4)
    records = [record for record in dataset.records() if record.split == "gallery"][:6]
    for name, some in (("images", records[:2]), ("gallery", records)):
        (tmp_path / name).mkdir()
        for letter, record in zip("abcdef", some, strict=False):
            (tmp_path / name / f"{letter}.jpg").write_bytes(dataset.read(record))
    return tmp_path


def run(program: str, folder: Path, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(REPO / "platform"), **environment}
    env = {name: value for name, value in env.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_the_code_about_the_python_interface_runs(folder):
    (folder / "experiments").mkdir()
    root = demo_outputs(folder / "outputs", folder / "experiments" / "demo.yaml")
    shown = run(code_of("python_api.md"), folder, RAYREID_ROOT=str(root))
    assert "random half" in shown
    assert "'fractoin'" in shown or "fractoin" in shown
    assert "float32" in shown and "\nTrue\n" in shown
    assert "similarity" in shown


def test_the_code_about_published_models_runs(folder, monkeypatch):
    from model_history import save
    from rayreid.publishing.publish import publish

    monkeypatch.setenv("RAYREID_ROOT", str(folder / "outputs"))
    publish(str(save(folder / "a.safetensors")), str(folder / "my-model"), "mit")
    compare = (
        "unit = lambda values: values / np.linalg.norm(values, axis=1, keepdims=True)\n"
        "print(np.allclose(unit(raw.numpy()), features[:1], atol=1e-2), "
        "np.allclose(unit(onnx_features), features[:1], atol=1e-2))"
    )
    assert run(f"{code_of('publishing.md')}\n{compare}", folder).endswith("True True\n")
    assert Image.open(folder / "images" / "a.jpg").size == (32, 64)
