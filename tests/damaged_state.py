"""State files of every kind, whole ones, with the function that reads each; and the ways in which they get damaged."""

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from rayreid.config.loading import load_experiment
from rayreid.console import Screen
from rayreid.data.datasets.existing_store import ExistingStore
from rayreid.data.datasets.folder import Folder
from rayreid.data.store.changes import changes_since_ingest
from rayreid.data.store.feature_file import FeatureTable, read_features, write_features
from rayreid.data.store.index import finish_store
from rayreid.data.store.inspection import summarise
from rayreid.data.store.shards import Record, write_shard
from rayreid.data.store.store import ImageStore
from rayreid.data.store.witness import Witness, write_witness
from rayreid.execution.failures import note_failure, raise_failure
from rayreid.execution.production import _stage_run
from rayreid.execution.shard_results import Undecodable
from rayreid.inference.compare import compare
from rayreid.pipeline.dataset_facts import _stored
from rayreid.pipeline.experiment_folder import draw_curves
from rayreid.pipeline.experiment_runner import experiment_run, is_recorded
from rayreid.pipeline.seed_groups import _gain
from rayreid.reid.pseudo_labels import Clustering, PseudoLabels
from rayreid.selection.image_measures import MEASURES
from rayreid.selection.quality_rules import quality_priority
from rayreid.selection.subset_file import subset_rows, write_subset
from rayreid.stages import features, priority, quality, score
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.storage.artifacts import Artifact
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking.deliverer import Deliverer
from rayreid.tracking.outage import Outage
from rayreid.tracking.outbox import Outbox
from rayreid.tracking.run import Run
from rayreid.training.checkpoint import Checkpoints
from recorded_run import RecordedRun
from small_store import small_store
from tiny_experiment import TINY

SHARDS, IN_SHARD = 2, 3
IMAGES = SHARDS * IN_SHARD
DEEP = 10**6
RUN = "0" * 32


REMEDIES = ("again", "remove ", "move it away", "copy ")
"""What one of in each message says what to do."""


@dataclass(frozen=True)
class StateFile:
    """A kind of state file.

    Attributes:
        path: The file in the folder that `write_whole` fills.
        read: Reads it as a command would, given that folder.
        form: What is in it: json, rows, table, array or text.
        rebuilt: Whether commands get over it by themselves, at the latest the second one; otherwise each names it.
    """

    path: str
    read: Callable[[Path], object]
    form: str
    rebuilt: bool = False


class Noted(RecordedRun):
    """A run that also takes texts, and figures' files before they are drawn."""

    def text(self, text: str, name: str) -> None:
        pass


class Client:
    """Takes whatever is sent to MLflow."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *of, **named: SimpleNamespace(info=SimpleNamespace(status="FINISHED", run_id="n"))


def tracker(root: Path) -> Any:
    """A tracker whose store takes everything."""
    outage = Outage("sqlite:///x", lambda line: None)
    return SimpleNamespace(
        client=Client(),
        uri="sqlite:///x",
        outboxes=root / "undelivered",
        outage=outage,
        deliverer=Deliverer(root / "undelivered", "sqlite:///x", outage),
        resume=lambda run: Noted(run),
        status=lambda run: "FINISHED",
        run=lambda *of: Noted("new"),
    )


def _fed(root: Path, run: str = RUN) -> object:
    feed = MetricsFeed(root / "feed/metrics.jsonl", run)
    feed.read()
    return feed.deliver(RecordedRun(run).history)


def screen() -> Screen:
    return Screen(Console(file=io.StringIO()))


def _session(root: Path) -> Any:
    return SimpleNamespace(root=root, tracker=tracker(root), screen=screen())


def _artifact(root: Path, stage: str) -> Artifact:
    return Artifact(root, stage, 1, {})


@cache
def _experiment(root: Path) -> Any:
    return load_experiment(root / "tiny.yaml")


def _taken_up(root: Path) -> None:
    checkpoints = Checkpoints(root / "checkpoints", 3)
    checkpoints.load(checkpoints.newest())
    checkpoints.save(2, {"step": torch.tensor(2)})


def _labels(root: Path) -> PseudoLabels:
    return PseudoLabels(root / "labels", np.arange(IMAGES), np.full(IMAGES, -1), Clustering(), 1)


def _resumed(files: Any) -> object:
    """What is still to be done, done with zeros."""
    for rows in files.missing().values():
        width = files._shape or (1,)
        files.add(rows, np.zeros((len(rows), *width), np.float32), {})
    return files


def _image(record: Record) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 8), (10, 20, 30)).save(stream, "PNG")
    return stream.getvalue()


def write_whole(root: Path) -> None:
    """Write one whole file of each kind."""
    import yaml

    root.mkdir(exist_ok=True)
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    store = small_store(root / "store", SHARDS, IN_SHARD)
    (root / "pool").mkdir()
    (root / "pool/a.png").write_bytes(_image(Record("a.png", -1, -1, "pool", "")))
    write_witness(root / "store", Folder(root / "pool").sources(), "here")

    feed = root / "feed"
    feed.mkdir()
    journal = Journal(feed / "metrics.jsonl", 1)
    for step in range(3):
        journal.append({"step": step, "epoch": float(step), "loss": 1.0, "probe_mAP": 0.5})
    _fed(root)

    box = Outbox(root / "undelivered" / (RUN))
    box.put({"uri": "sqlite:///x", "kind": "tags", "what": {"a": "b"}})
    box.put({"uri": "sqlite:///x", "kind": "artifact", "what": {"name": "figures/a.png"}}, "a.png", b"drawn")
    box.put({"uri": "sqlite:///x", "kind": "rows", "what": [{"step": 1, "time": 1.5, "loss": 0.5}]})
    for number, path in enumerate(sorted(box.folder.glob("*.json"))):
        if path.with_suffix("").exists():
            path.with_suffix("").rename(path.with_name(str(number)))
        path.rename(path.with_name(f"{number}.json"))

    for stage in ("noted", "written"):
        _artifact(root, stage).path.mkdir(parents=True)
    (_artifact(root, "noted").path / "run.json").write_text(json.dumps({"run": RUN}))
    (_artifact(root, "written").path / ".writers.json").write_text(json.dumps({"number": 3}))

    experiment_run(_session(root), _experiment(root))

    checkpoints = Checkpoints(root / "checkpoints", 3)
    for step in (1, 2):
        checkpoints.save(step, {"step": torch.tensor(step)})

    (root / "labels").mkdir()
    np.savez_compressed(
        root / "labels/0001.npz", rows=np.arange(IMAGES), labels=np.zeros(IMAGES, np.int32), found_in=np.int64(1)
    )

    (root / "failed").mkdir()
    from rayreid.errors import UserError

    note_failure(root / "failed", UserError("no good"))

    write_features(
        root / "features.parquet",
        FeatureTable(
            np.array(["a", "b"], object),
            np.ones((2, 3), np.float32),
            np.zeros(2, np.int32),
            np.zeros(2, np.int16),
            np.array(["query", "query"], object),
            {"weights": "x"},
        ),
    )
    write_subset(root, store.keys[:2], np.array([0.5, 0.25]))
    pq.write_table(
        pa.table({"key": store.keys.tolist(), "priority": pa.array(np.ones(IMAGES))}), root / "priority.parquet"
    )
    measures = {name: pa.array(np.ones(IMAGES, np.float32)) for name in MEASURES}
    pq.write_table(pa.table({"key": store.keys.tolist(), **measures}), root / "quality.parquet")
    (root / "measured/measures").mkdir(parents=True)
    for shard, rows in features.rows_by_shard(store).items():
        np.save(root / f"measured/measures/{shard:05d}.npy", np.ones((len(rows), len(MEASURES)), np.float32))
    (root / "scoring").mkdir()
    _resumed(score.ScoreFiles(root / "scoring/scores", store, [""]))
    (root / "extracted/features").mkdir(parents=True)
    (root / "sampled").mkdir()
    for shard, rows in features.rows_by_shard(store).items():
        np.save(root / f"extracted/features/{shard:05d}.npy", np.ones((len(rows), 4), np.float16))
    (root / "scoring/undecodable.tsv").write_text("a.png\ttruncated\nb.png\ttruncated\n")
    for name in ("one", "two"):
        folder = root / "evaluate" / name
        folder.mkdir(parents=True)
        facts = dict.fromkeys(("mAP", "rank1", "rank5", "rank10", "mINP"), 0.5)
        recipe = {"stage": "evaluate", "fields": {}, "inputs": {"target": "t"}}
        (folder / "artifact.json").write_text(json.dumps({"recipe": recipe, "facts": facts}))
        pq.write_table(pa.table({"key": ["a", "b"], "average_precision": [0.5, 0.75]}), folder / "queries.parquet")
        np.save(folder / "cmc.npy", np.linspace(0.5, 1, 10))
    shards = root / "parts"
    for shard in range(2):
        write_shard(shards, shard, [Record(f"{shard}.png", -1, -1, "pool", "")], _image)


def _graph(root: Path, name: str) -> Any:
    made = SimpleNamespace(id="t", path=root / "evaluate" / name)
    return {"target": made, "metrics": made}


def _deliver(root: Path) -> None:
    Run(tracker(root), RUN).deliver()
    waiting = [one.path for one in Outbox(root / "undelivered" / RUN).entries() if one.content["uri"] == "sqlite:///x"]
    elsewhere = [one.path for one in Outbox(root / "undelivered" / RUN).entries() if one.path not in waiting]
    assert elsewhere or not waiting, f"not delivered: {waiting}"  # entries for another store wait for that


def _write_parts(root: Path) -> None:
    for shard in range(2):
        write_shard(root / "parts", shard, [Record(f"{shard}.png", -1, -1, "pool", "")], _image)
    finish_store(root / "parts", 2, "mine", "")


def _all_of(store: ImageStore) -> object:
    return (
        summarise(store),
        store.keys,
        store.splits,
        store.digests(),
        [store.encoded(row) for row in range(len(store))],
    )


def _writing(root: Path) -> None:
    with _artifact(root, "written").writing():
        pass


def _compared(root: Path) -> None:
    compare(*(str(root / "evaluate" / name) for name in ("one", "two")), str(root / "c.png"), screen=screen())


def _finished_sample(root: Path) -> object:
    store = ImageStore(root / "store")
    return [values.sum() for _, values in features.read(root / "extracted", store, "all")]


def _resume_features(root: Path) -> object:
    return _resumed(features._Files(root / "extracted/features", ImageStore(root / "store")))


def _experiment_note(root: Path) -> object:
    session, experiment = _session(root), _experiment(root)
    return is_recorded(session, experiment, None)


STATE = {
    "store manifest": StateFile("store/manifest.json", lambda root: _all_of(ImageStore(root / "store")), "json"),
    "manifest of a pool": StateFile("store/manifest.json", lambda root: _stored("pool", root / "store"), "json"),
    "manifest to adopt": StateFile(
        "store/manifest.json", lambda root: ExistingStore(str(root / "store")).adopt(root / "adopted"), "json"
    ),
    "index": StateFile("store/index.parquet", lambda root: _all_of(ImageStore(root / "store")), "table"),
    "index to adopt": StateFile(
        "store/index.parquet", lambda root: list(ExistingStore(str(root / "store")).records()), "table"
    ),
    "rejected": StateFile(
        "store/rejected.parquet",
        lambda root: changes_since_ingest(root / "store", Folder(root / "pool"), "here", "quick"),
        "table",
    ),
    "witness": StateFile(
        "store/witness.parquet",
        lambda root: list(Witness(root / "store").files()),
        "table",
        rebuilt=True,
    ),
    "shard": StateFile("store/shards/00000.arrow", lambda root: _all_of(ImageStore(root / "store")), "array"),
    "part": StateFile("parts/shards/00000.parquet", _write_parts, "table", rebuilt=True),
    "rejected of a part": StateFile("parts/shards/00000.rejected.parquet", _write_parts, "table", rebuilt=True),
    "journal": StateFile(
        "feed/metrics.jsonl",
        lambda root: (
            Journal(root / "feed/metrics.jsonl").history(),
            _fed(root, "1"),
            MedianStopping((root / "feed/metrics.jsonl",) * 4, 0).verdict(1.0, 0.1, root / "own"),
            Journal(root / "feed/metrics.jsonl", 2).append({"step": 3}),
        ),
        "rows",
        rebuilt=True,
    ),
    "delivered": StateFile(
        "feed/delivered.json",
        _fed,
        "json",
        rebuilt=True,
    ),
    "outbox tags": StateFile(f"undelivered/{RUN}/0.json", _deliver, "json", rebuilt=True),
    "outbox artifact": StateFile(f"undelivered/{RUN}/1.json", _deliver, "json", rebuilt=True),
    "outbox payload": StateFile(f"undelivered/{RUN}/1/a.png", _deliver, "text", rebuilt=True),
    "outbox rows": StateFile(f"undelivered/{RUN}/2.json", _deliver, "json", rebuilt=True),
    "run note": StateFile(
        f"noted/{Artifact(Path(), 'noted', 1, {}).id}/run.json",
        lambda root: _stage_run(_artifact(root, "noted"), _artifact(root, "noted").path, RecordedRun(), {}),
        "json",
        rebuilt=True,
    ),
    "note of an experiment": StateFile("experiments/*/run.json", _experiment_note, "json", rebuilt=True),
    "writers": StateFile(
        f"written/{Artifact(Path(), 'written', 1, {}).id}/.writers.json", _writing, "json", rebuilt=True
    ),
    "seal": StateFile("checkpoints/00000002.json", _taken_up, "json", rebuilt=True),
    "checkpoint": StateFile("checkpoints/00000002.pt", _taken_up, "array", rebuilt=True),
    "pseudo labels": StateFile("labels/0001.npz", lambda root: _labels(root).take_up(1), "array"),
    "failure": StateFile("failed/failure-0.json", lambda root: raise_failure(root / "failed"), "json"),
    "features of predict": StateFile(
        "features.parquet", lambda root: read_features(root / "features.parquet"), "table"
    ),
    "subset": StateFile("subset.parquet", lambda root: subset_rows(ImageStore(root / "store"), root), "table"),
    "priority": StateFile(
        "priority.parquet", lambda root: priority.read_priority(root)["priority"].to_numpy().sum(), "table"
    ),
    "scores": StateFile(
        "scoring/scores/00000.parquet",
        lambda root: score.read_scores(root / "scoring")["cfs"].to_numpy().sum(),
        "table",
    ),
    "scores to go on with": StateFile(
        "scoring/scores/00000.parquet",
        lambda root: _resumed(score.ScoreFiles(root / "scoring/scores", ImageStore(root / "store"), [""])).scores(),
        "table",
        rebuilt=True,
    ),
    "features": StateFile("extracted/features/00000.npy", _finished_sample, "array"),
    "features to go on with": StateFile("extracted/features/00000.npy", _resume_features, "array", rebuilt=True),
    "quality": StateFile(
        "quality.parquet", lambda root: quality_priority(quality.read_quality(root, IMAGES), ()), "table"
    ),
    "measures to go on with": StateFile(
        "measured/measures/00000.npy",
        lambda root: _resumed(quality.MeasureFiles(root / "measured/measures", ImageStore(root / "store"))).measures(),
        "array",
        rebuilt=True,
    ),
    "undecodable": StateFile(
        "scoring/undecodable.tsv",
        lambda root: Undecodable(root / "scoring/undecodable.tsv").add({"c.png": "truncated"}),
        "text",
        rebuilt=True,
    ),
    "queries": StateFile("evaluate/one/queries.parquet", _compared, "table"),
    "queries of seeds": StateFile(
        "evaluate/one/queries.parquet", lambda root: _gain([_graph(root, "one")], [_graph(root, "two")]), "table"
    ),
    "cmc": StateFile("evaluate/one/cmc.npy", _compared, "array"),
    "cmc of rows": StateFile(
        "evaluate/one/cmc.npy",
        lambda root: draw_curves(
            {"one": _graph(root, "one"), "two": _graph(root, "two")},
            {"one": "a", "two": "b"},
            root / "c.png",
            RecordedRun(),
        ),
        "array",
    ),
}


def _noise(count: int) -> bytes:
    return random.Random(0).randbytes(count)


def damages(whole: bytes, form: str) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Yield ways to damage a file: a name, and a function that does it to the path."""
    contents = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "last byte lost": whole[:-1],
        "noise": _noise(3000),
        "zeros": bytes(len(whole)),
        "text": b"<html>not found</html>\n",
        "latin-1": "d\xe9j\xe0\n".encode("latin-1"),
    }
    if form in ("json", "rows"):
        contents |= dict(_of_json(whole, form))
    for name, content in contents.items():
        yield name, partial(written, content)
    if form == "table":
        for name, table in _tables(whole):
            yield name, partial(_table, table)
    if form == "array":
        for name, array in (
            ("other shape", np.zeros((1, 1, 1))),
            ("text array", np.array(["a", "b"])),
            ("scalar", np.float32(1)),
            ("empty array", np.zeros((0, 4))),
        ):
            yield name, partial(_array, array)
        for place in range(0, min(len(whole), 100), 7):
            yield f"byte {place}", partial(written, whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    yield "a folder", _folder
    yield "gone", lambda path: path.unlink()


def _of_json(whole: bytes, form: str) -> Iterator[tuple[str, bytes]]:
    end = b"\n" if form == "rows" else b""
    for text in ("[]", "null", "{}", "7", '"text"', "true", "NaN", "-Infinity", "1" * 5000, "[[]]", '{"a": 1}'):
        yield text[:20], text.encode() + end
    yield "deep lists", b"[" * DEEP + end
    yield "deep objects", b'{"a":' * DEEP + end
    first = json.loads(whole.splitlines()[0] if form == "rows" else whole)
    for name in _paths(first):
        for value in ("[]", "null", "-1", '"../../x"', "true", "NaN", "9" * 100):
            yield f"{'.'.join(map(str, name))} = {value[:12]}", _with(first, name, value).encode() + end


def _paths(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))


def _with(tree: Any, path: tuple, value: str) -> str:
    copied = json.loads(json.dumps(tree))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "@@@"
    return json.dumps(copied).replace('"@@@"', value)


def _tables(whole: bytes) -> Iterator[tuple[str, pa.Table]]:
    table = pq.read_table(pa.BufferReader(whole))
    yield "other columns", pa.table({"other": [1, 2, 3]})
    yield "no metadata", table.replace_schema_metadata(None)
    yield "metadata of another kind", table.replace_schema_metadata({"rayreid": "[]"})
    yield "no rows", table.slice(0, 0)
    yield "a row more", pa.concat_tables([table, table.slice(0, 1)])
    for name in table.column_names:
        yield f"without {name}", table.drop_columns([name])
        for kind in (pa.string(), pa.int64(), pa.list_(pa.int8())):
            made = pa.array([None] * len(table), kind)
            yield f"{name} of {kind}", table.set_column(table.column_names.index(name), name, made)


def _clear(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def written(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


def _array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, rows=array, labels=array, found_in=array) if path.suffix == ".npz" else np.save(stream, array)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()
