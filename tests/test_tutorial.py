"""The tutorial, command by command and file by file, with small images and short trainings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayreid.data.synthetic.synthetic import Synthetic
from test_documents import BLOCKS, shell_lines

PAGE = "docs/tutorial.md"
ELSEWHERE = {"rayreid demo": "tests/test_wheel.py, make demo", "ray job submit": "tests/execution/test_job.py"}
"""Commands that other tests run."""
SMALL = [
    *("pretrain.steps=4", "pretrain.batch_size=16", "pretrain.hidden_dim=64", "pretrain.probe_every=0"),
    *("finetune.epochs=1", "finetune.identities=4", "backbone.depth=1"),
]
FEWER = {
    "rayreid run experiments/mine.yaml select.fraction=0.25 seed=1": [
        "compare=[{label: random half, select.strategy: random}]"
    ],
    "rayreid run experiments/mine-sweep.yaml": ["sweep.parameters={select.fraction: [0.5]}"],
    "rayreid report experiments/mine-sweep.yaml": ["sweep.parameters={select.fraction: [0.5]}"],
}
"""Overrides that leave out rows and trials which would show nothing new."""
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.ray]


def draw(folder: Path) -> None:
    """Write a folder of crops, and a target in Market-1501's layout."""
    pool = Synthetic(None, part="pool", images=96, size=(64, 32))
    (folder / "my-crops").mkdir(parents=True)
    for number, record in enumerate(pool.records()):
        (folder / f"my-crops/{number}.jpg").write_bytes(pool.read(record))
    target = Synthetic(None, part="target", identities=8, test_identities=6, cameras=3, size=(64, 32))
    for number, record in enumerate(target.records()):
        place = folder / "my-target" / FOLDERS[record.split]
        place.mkdir(parents=True, exist_ok=True)
        name = f"{record.pid:04d}_c{record.camid}s1_{number:06d}_00.jpg"
        (place / name).write_bytes(target.read(record))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """What each command of the page printed, in its order; every one ended with status 0."""
    home = tmp_path_factory.mktemp("tutorial")
    draw(home / "data")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAYREID_")}
    environment |= {"RAYREID_DATA": str(home / "data"), "RAYREID_ROOT": str(home / "results")}
    printed = []
    for block in (one for one in BLOCKS if one.page == PAGE):
        if block.language == "yaml":
            (name,) = re.findall(r"^name: (\S+)$", block.text, re.MULTILINE)
            (home / f"experiments/{name}.yaml").write_text(block.text)
            continue
        for line in shell_lines(block.text):
            if line.startswith(("export", *ELSEWHERE)):
                continue
            program, *arguments = line.split()
            assert program == "rayreid"
            trains = arguments[0] in ("run", "ingest", "config", "report")
            command = [
                sys.executable,
                "-m",
                "rayreid.cli",
                *arguments,
                *(SMALL if trains else ()),
                *FEWER.get(line, ()),
            ]
            ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=540)
            assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
            printed.append((line, ran.stdout))
    return home, printed


def test_every_command_of_it_is_run_here_or_elsewhere(tutorial):
    _, printed = tutorial
    ran = [line.split()[1] for line, _ in printed]
    assert ran == ["init", "ingest", "config", "run", "run", "run", "report"]


def test_its_rows_are_in_the_table(tutorial):
    _, printed = tutorial
    (table, *_) = (shown for line, shown in printed if line.startswith("rayreid run"))
    assert all(label in table for label in ("no pre-training", "random half", "CFS half", "mlflow ui"))


def test_its_report_is_a_page_that_plots_both_strategies(tutorial):
    home, _ = tutorial
    (report,) = home.glob("results/reports/mine-sweep-*/report.html")
    assert "cfs" in report.read_text() and "random" in report.read_text()
