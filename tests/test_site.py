"""The site of the documents: its generated reference, and the whole site in a browser without a screen."""

import functools
import importlib
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from headless_browser import evaluate, require_browser
from rayreid.config.schema import sections

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def reference():
    """The module that generates the reference; it lies beside the site's configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs/site"))
        yield importlib.import_module("reference")


def test_every_key_has_a_row_with_its_facts(reference):
    page = reference.keys()
    for model in sections():
        (part,) = re.findall(rf"(?ms)^## {model.__name__}$(.*?)(?=^## |\Z)", page)
        assert re.findall(r"^\| `(\w+)` ", part, re.MULTILINE) == list(model.model_fields)
    for row in (
        "| `fraction` | number; share of the pool; > 0, ≤ 1 | `0.5` | yes | Share of the pool that is selected, best ",
        "| `img_size` | [integer, integer]; pixels; ≥ 1, ≤ 8,192 | `[256, 128]` | yes | ",
        "| `checkpoint_minutes` | number; minutes; > 0, ≤ 1,000,000.0 | `10` | runtime | ",
        "| `weights` | text or `null` | `null` | by its content | ",
        "| `rerank` | [Rerank](#rerank) or `true`, `false` | `false` | if changed | ",
    ):
        assert row in page


def test_runtime_keys_are_those_that_the_concepts_list(reference):
    page = (ROOT / "docs/concepts/artifacts.md").read_text()
    (listed,) = re.findall(r"They are left out of every id:\n\n(.*?)\n\n", page, re.DOTALL)
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", listed)}
    shown = set(re.findall(r"\| `(\w+)` \|[^\n]*\| runtime \|", reference.keys()))
    assert shown == named - {"resources", "workers", "global_mining"}


def test_units_are_of_keys_that_there_are(reference):
    assert set(reference.UNITS) <= {key for model in sections() for key in model.model_fields}
    assert reference.unit("freeze_epochs") == "epochs" and reference.unit("lr") == ""


def test_every_command_is_listed_with_its_options(reference):
    page = reference.commands()
    names = [name for name, _ in reference.every_command()]
    assert {"run", "demo", "schema", "weights export"} <= set(names)
    assert re.findall(r"^## rayreid (.*)$", page, re.MULTILINE) == names
    assert "| `--against` |" in page and "`--strict`, `--no-strict`" in page


def test_every_module_is_on_a_page(reference):
    shown = {name for room in reference.rooms() for name in re.findall(r"^::: (\S+)$", reference.python(room), re.M)}
    package = ROOT / "platform/rayreid"
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if "cli" not in path.parts
    }
    assert shown == modules - {"rayreid"}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the site, built as `make docs` builds it, on a server of the test's own."""
    require_browser()
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "mkdocs", "build", "--strict", "--config-file", "docs/site/mkdocs.yml", "--site-dir", folder]
    built = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("less disk space", "howto/disk_space.html"),
        ("one camera", "howto/one_camera.html"),
        ("catastrophic forgetting", "concepts/cfs.html"),
    ],
)
def test_a_search_finds_the_page(address, tmp_path, words, page):
    links = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
    found = evaluate(f"{address}/index.html?q={quote(words)}", f"{links}.length", links, tmp_path)
    assert any(link.startswith(f"{address}/{page}") for link in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["index.html", "architecture.html", "reference/keys.html", "reference/python/selection.html"]
)
def test_a_page_loads_nothing_from_elsewhere(address, tmp_path, page):
    loaded = "performance.getEntriesByType('resource').map(one => one.name)"
    ready = "document.readyState === 'complete' && document.querySelector('h1') !== null"
    files = evaluate(f"{address}/{page}", ready, loaded, tmp_path)
    assert files and [one for one in files if not one.startswith(address)] == []
