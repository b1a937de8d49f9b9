"""The ledger: a CSV file with one line per finished row and seed, because weights cannot be committed and numbers can.

It is made from artifacts. MLflow is asked only for the commit of artifacts that do not record theirs.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayreid.config import Experiment
from rayreid.config.loading import row_labels, rows
from rayreid.errors import UserError
from rayreid.files import make_folder
from rayreid.paths import expanded, output_root
from rayreid.pipeline.csv_text import cell, csv_of
from rayreid.pipeline.experiment_folder import digest_of
from rayreid.pipeline.graph import plan
from rayreid.pipeline.probes import probes_of
from rayreid.pipeline.summary import row_of
from rayreid.pipeline.tags import tags_of
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.history import History
from rayreid.tracking.store import tracking_uri

COLUMNS = (
    "experiment",
    "row",
    "seed",
    "date",
    "config",
    "commit",
    "machine",
    "backbone",
    "stem",
    "img_size",
    "method",
    "strategy",
    "fraction",
    "images",
    "budget",
    "steps",
    "target",
    "adapt",
    "probe_start",
    "probe_end",
    "effective_rank_start",
    "effective_rank_end",
    "auc",
    "mAP",
    "rank1",
    "mINP",
    "seconds",
    "gpu_hours",
    "test_images",
    "warnings",
    "metrics",
    "note",
)
"""The columns in their order; docs/configuration/many.md explains them."""

_KEY = ("experiment", "row", "metrics")
"""Columns that name a line: a measurement that two experiments share has a line in each."""

_DIGITS = {
    **dict.fromkeys(("probe_start", "probe_end", "mAP", "rank1", "mINP"), 4),
    **dict.fromkeys(("effective_rank_start", "effective_rank_end"), 2),
    **dict.fromkeys(("auc", "gpu_hours"), 3),
    "seconds": 0,
}
"""Decimals of the columns that are not whole numbers."""


@dataclass(frozen=True)
class Entered:
    """The result of entering an experiment into a ledger.

    Attributes:
        path: The ledger.
        added: Number of new lines.
        known: Number of finished rows that it already had.
        unfinished: Number of rows without metrics on this output root.
        unknown: Rows that cannot be looked up, and why: a file that they name is missing, for example.
    """

    path: Path
    added: int
    known: int
    unfinished: int
    unknown: tuple[str, ...] = ()


def enter(experiment: Experiment, ledger: str, note: str = "", machine: str = "") -> Entered:
    """Append the finished rows of a file, one line per row and seed, to a CSV file; lines that are there stay.

    Args:
        experiment: The experiment.
        ledger: The CSV file; it is created, with its folder, if it does not exist.
        note: Text for the last column of the new lines.
        machine: Machine of artifacts that do not record theirs.

    Raises:
        UserError: The file is a sweep, no row can be looked up, or the ledger is no CSV file or has other columns.
    """
    if experiment.sweep is not None:
        raise UserError(f"experiment {experiment.name!r} is a sweep; the ledger takes rows: list them under compare")
    path = expanded(ledger)
    if path.suffix != ".csv":
        raise UserError(f"--to {ledger}: name it *.csv")
    known = _known(path)
    root = output_root()
    table, labels = rows(experiment), row_labels(experiment)
    graphs: dict[str, Mapping[str, Artifact]] = {}
    unknown = []
    for label, row in table.items():
        try:
            graphs[label] = plan(row, root)
        except UserError as error:
            unknown.append(f"{label or experiment.name}: {error}")
    if not graphs:
        raise UserError(f"no row can be looked up: {'; '.join(unknown)}")
    finished = {label: graph for label, graph in graphs.items() if graph["metrics"].complete}
    told = {"note": note}
    lines = [
        _line(experiment.name, labels[label], table[label], graph, machine) | told for label, graph in finished.items()
    ]
    new = [line for line in lines if tuple(cell(line[name]) for name in _KEY) not in known]
    if new:
        make_folder(path.parent)
        _append(path, new)
    return Entered(path, len(new), len(lines) - len(new), len(graphs) - len(finished), tuple(unknown))


def _known(path: Path) -> set[tuple[str, ...]]:
    """Return the keys of the lines that a ledger has; none if it does not exist.

    Raises:
        UserError: It has other columns.
    """
    if not path.exists() or not path.stat().st_size:
        return set()
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first column
    except UnicodeDecodeError:
        raise UserError(f"{path}: it is no text in UTF-8; name another file with --to") from None
    with io.StringIO(text, newline="") as stream:
        reader = csv.DictReader(stream)
        found = reader.fieldnames or ()
        odd = sorted(set(found) ^ set(COLUMNS))
        if odd or tuple(found) != COLUMNS:
            what = f"{odd[0]!r} is in only one of both" if odd else "their order differs"
            raise UserError(
                f"{path}: its columns are not those of this version's ledger ({what}); name another file with --to"
            )
        return {tuple(cell(line[name]) for name in _KEY) for line in reader}  # former versions marked no formulas


def _append(path: Path, lines: list[dict[str, str]]) -> None:
    """Append lines in one write, so that another process's lines stay whole; a new file begins with the columns."""
    present = path.read_bytes() if path.exists() else b""
    text = csv_of(COLUMNS, lines, header=not present)
    if present and not present.endswith(b"\n"):  # as an editor or a merge may leave it
        text = "\n" + text
    with path.open("a", encoding="utf-8", newline="") as stream:
        stream.write(text)


def _line(name: str, label: str, experiment: Experiment, graph: Mapping[str, Artifact], machine: str) -> dict[str, str]:
    """Return a finished row as text, by column."""
    outcome, tags = row_of(label, experiment, graph), tags_of(experiment)
    trained = [graph[role].facts for role in ("weights", "model", "adapted") if role in graph]
    machines = dict.fromkeys(facts.get("machine", machine) for facts in trained)
    stages = [graph[role] for role in ("weights", "model", "adapted", "metrics") if role in graph]
    resumed = any(stage.facts.get("resumed") for stage in stages)
    auc = graph["priority"].facts.get("auc") if "priority" in graph else outcome.auc
    values: dict[str, Any] = {
        "experiment": name,
        "row": label,
        "seed": experiment.seed,
        "date": _date(graph["metrics"]),
        "config": digest_of(experiment),
        "commit": " | ".join(dict.fromkeys(filter(None, map(_commit, stages)))),
        "machine": " | ".join(filter(None, machines)),
        **{
            column: tags[column] for column in ("backbone", "stem", "method", "strategy", "fraction", "budget", "adapt")
        },
        "img_size": "x".join(map(str, experiment.backbone.img_size)),
        "images": outcome.images,
        "steps": outcome.steps,
        "target": outcome.target,
        **probes_of(graph.get("weights")),
        "auc": auc,
        **{metric: outcome.scores[metric] for metric in ("mAP", "rank1", "mINP")},
        # What a process spent before it was interrupted is not known.
        "seconds": None if resumed else outcome.seconds,
        "gpu_hours": None if resumed else outcome.gpu_hours,
        "test_images": outcome.test_images,
        "warnings": " | ".join(outcome.warnings),
        "metrics": graph["metrics"].id,
    }
    return {column: _text(column, values[column]) for column in COLUMNS if column in values}


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{_DIGITS[column]}f}" if column in _DIGITS else str(value)


def _date(artifact: Artifact) -> str:
    """Return when an artifact was finished (UTC); of older ones, which do not record it, by their file's time."""
    recorded = artifact.facts.get("finished")
    if recorded is not None:
        return str(recorded)
    changed = (artifact.path / "artifact.json").stat().st_mtime
    return datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _commit(artifact: Artifact) -> str:
    """Return the commit of the code that made an artifact; of older ones as MLflow has it; empty if it is not known."""
    facts = artifact.facts
    if facts.get("git_sha") or "run" not in facts:
        return facts.get("git_sha") or ""
    try:
        run = History(tracking_uri(artifact.root)).get(facts["run"])
    except UserError:
        return ""
    return run.tags.get("git_sha", "") if run else ""
