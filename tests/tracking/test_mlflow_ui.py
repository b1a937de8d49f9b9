"""MLflow's own pages on a finished sweep, in a browser without a screen: its results, and strategies side by side."""

import json
import re
import socket
import subprocess
import sys
import time
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from headless_browser import BROWSER, require_browser
from rayreid.tracking.store import results_page
from tracked_sweep import NOTHING, SCORES, WHOLE, put_down

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(root):
    """A server on the sweep's store: its address, and the runs of either strategy by the search that finds them."""
    require_browser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bin/rayreid", "sweep", "experiments/sweeps/fractions.yaml"])
        top = put_down(root, seeds=(0,))
    found = {
        strategy: top.client.search_runs(
            [top.tracker.experiment_id], f"tags.strategy = '{strategy}' and metrics.mAP > 0.25"
        )
        for strategy in ("cfs", "random")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", top.tracker.uri, "--port", str(port)]
    with subprocess.Popen([*command, "--workers", "1"], cwd=root, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        _wait(f"{address}/health")
        yield address, top.tracker.experiment_id, found
        process.terminate()


def _wait(url: str, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.5)


def shown(url: str, folder) -> str:
    """The page's document once its scripts have come to rest."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,800",
        f"--user-data-dir={folder}",
        "--virtual-time-budget=60000",
    ]
    answer = subprocess.run([BROWSER, *options, "--dump-dom", url], capture_output=True, text=True, timeout=240)
    return answer.stdout


def test_the_compare_page_shows_both_strategies(server, tmp_path):
    address, experiment, found = server
    assert {name: len(runs) for name, runs in found.items()} == {"cfs": 2, "random": 1}
    runs = [run.info.run_id for one in found.values() for run in one]
    page = f"{address}/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    document = shown(page, tmp_path)
    for told in ("cfs 0.25 patchify 0", "random 0.5 patchify 0", "select.fraction", "mAP", "strategy"):
        assert told in document, f"{told!r} is not on the page"
    axes = re.findall(r'class="axis-title"[^>]*>([^<]*)<', document)
    assert {"fraction", "mAP"} <= set(axes), f"the parallel coordinates have the axes {axes}"


def test_the_page_that_a_run_names_lists_the_results_without_a_click(server, tmp_path):
    address, experiment, _ = server
    document = shown(results_page(address, experiment), tmp_path)
    assert re.search("<h2[^>]*>Runs<", document) and "Judges" not in document, "not in the view for model training"
    rows = re.findall(r'id="cell-metrics\.`mAP`-\d+" class="ag-cell-value">([^<]*)<', document)
    rank1 = re.findall(r'id="cell-metrics\.`rank1`-\d+" class="ag-cell-value">([^<]*)<', document)
    reached = sorted([*(v for by in SCORES.values() for v in by.values()), WHOLE, WHOLE, NOTHING], reverse=True)
    assert [float(value) for value in rows[:-1]] == reached and rows[-1] == "-"  # the last is the one that failed
    assert [float(value) for value in rank1[:-1]] == pytest.approx([value + 0.1 for value in reached])
    assert document.count(">fractions.yaml<") == len(rows)  # the source of each
