"""The notebook `docs/quickstart.ipynb`: how it is stored, and that it runs."""

import re
from pathlib import Path

import nbformat
import pytest

from demo_outputs import demo_outputs

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
MIB = 2**20
MINUTES = 10


@pytest.fixture
def notebook():
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_it_is_stored_without_outputs(notebook):
    assert NOTEBOOK.stat().st_size < MIB
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert (cell.outputs, cell.execution_count) == ([], None)


def test_it_compares_the_rows_of_the_demo_and_links_to_pages_that_exist(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "../experiments/demo.yaml" in text and (DOCS / "../experiments/demo.yaml").exists()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / target).exists(), target


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The outputs of the demo that RAYREID_DEMO_ROOT names; else a tiny experiment in its place."""
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent / "platform"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAYREID_DATA"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "demo.yaml"
    monkeypatch.setenv("RAYREID_ROOT", str(demo_outputs(tmp_path / "outputs", file)))
    monkeypatch.setenv("RAYREID_QUICKSTART", str(file))


@pytest.mark.ray
@pytest.mark.slow
def test_it_runs_and_shows_tables_and_pictures(notebook, outputs):
    from nbclient import NotebookClient

    client = NotebookClient(notebook, timeout=60 * MINUTES, resources={"metadata": {"path": str(DOCS)}})
    client.execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("text/html" in data for data in shown) >= 4, "tables"
    assert sum("image/png" in data for data in shown) >= 4, "pictures"
    text = "\n".join(str(data.get("text/html", "")) for data in shown)
    assert "no pre-training" in text and "similarity" in text
