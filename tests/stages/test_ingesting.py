"""The stage ingest without Ray: what an ingest that was interrupted or refused reads again, and when it is refused."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk, write_tree
from rayreid.config import Ingest, Source
from rayreid.console import Screen
from rayreid.data.datasets.folder import Folder
from rayreid.data.store.index import finish_store
from rayreid.data.store.listing import PARTS, deal, write_part
from rayreid.data.store.shards import part_file
from rayreid.data.store.witness import Witness, digest_of_files
from rayreid.errors import UserError
from rayreid.stages.ingest import _begin, _check_rejected, _check_unchanged, _record


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 4, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def pool(tmp_path) -> Path:
    """Eight good images, and one that is none."""
    (tmp_path / "pool").mkdir()
    for number in range(8):
        (tmp_path / f"pool/{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "pool/8.jpg").write_bytes(b"<html>")
    return tmp_path / "pool"


@pytest.fixture
def ingest(pool, tmp_path, monkeypatch):
    """Begins an ingest, writes its shards of three images and, if asked for, joins them; returns its folder."""
    monkeypatch.setattr("rayreid.data.store.listing.LEAST_IMAGES", 3)
    monkeypatch.setattr("rayreid.data.store.listing.PARTS", min(PARTS, 3))

    def ingest(join: bool = True) -> Path:
        folder, dataset = tmp_path / "store", Folder(pool)
        folder.mkdir(exist_ok=True)
        _begin(folder, dataset, str(pool))
        parts = [write_part(folder, n, part, dataset.read, "decode") for n, part in enumerate(deal(dataset.records()))]
        if join:
            finish_store(folder, len(parts), "folder", "")
        return folder

    return ingest


def written(folder: Path) -> list[int]:
    return [part_file(folder, shard).stat().st_mtime_ns for shard in range(3)]


def test_an_interrupted_ingest_of_the_same_files_keeps_its_shards(ingest):
    before = written(ingest(join=False))
    assert written(ingest(join=False)) == before


def test_a_store_that_is_made_again_must_be_the_one_that_was_damaged(ingest, pool, tmp_path):
    manifest = json.loads((ingest() / "manifest.json").read_text())
    aside = tmp_path / "store.damaged-1"
    aside.mkdir()
    recipe = {"stage": "ingest", "fields": {}, "inputs": {}}

    def check(fingerprint: str) -> None:
        content = {"recipe": recipe, "facts": {"fingerprint": fingerprint}}
        (aside / "artifact.json").write_text(json.dumps(content))
        _check_unchanged(Source(dataset="folder", root=str(pool), revision=2), manifest, tmp_path / "store")

    check(manifest["fingerprint"])
    with pytest.raises(UserError, match=rf"are not those of its store, which is damaged \({aside}\); set revision=3"):
        check("another")
    (aside / "artifact.json").write_text("")
    _check_unchanged(Source(dataset="folder", root=str(pool)), manifest, tmp_path / "store")


def test_an_interrupted_ingest_reads_everything_again_if_a_file_changed(ingest, pool):
    before = written(ingest(join=False))
    os.utime(pool / "0.jpg", ns=(0, 0))
    assert not set(written(ingest(join=False))) & set(before)


def test_an_interrupted_ingest_reads_everything_again_if_nothing_says_what_it_read(ingest):
    folder = ingest(join=False)
    before = written(folder)
    (folder / "witness.parquet").write_bytes(b"")
    assert not set(written(ingest(join=False))) & set(before)


def test_a_refused_ingest_reads_the_shards_with_rejected_images_again(ingest):
    first = written(ingest())
    second = written(ingest())
    assert second[:2] == first[:2] and second[2] != first[2]


@pytest.mark.parametrize(("most", "refused"), [(0.05, True), (0.25, True), (0.34, False), (1, False)])
def test_more_rejected_images_than_allowed_end_an_ingest(most, refused, tmp_path):
    manifest = {"read": 9, "rejected": {"HTML page": 1, "truncated": 2}}
    source = Source(dataset="folder", root="/data/pool")
    if not refused:
        _check_rejected(source, Ingest(max_rejected=most), manifest, tmp_path)
        return
    with pytest.raises(UserError) as error:
        _check_rejected(source, Ingest(max_rejected=most), manifest, tmp_path)
    assert str(error.value) == (
        f"/data/pool: 3 of 9 images were rejected (1 HTML page, 2 truncated), more than ingest.max_rejected={most:g}; "
        f"mend them (listed in {tmp_path / 'rejected.parquet'}) and run again, or raise it"
    )


def test_a_folder_whose_name_looks_like_markup_is_printed_as_it_is(tmp_path):
    printed = io.StringIO()
    run = SimpleNamespace(dataset=lambda *_: None, file=lambda *_: None)
    context = SimpleNamespace(folder=tmp_path / "[/old]", run=run, screen=Screen(Console(file=printed, width=500)))
    manifest = {"fingerprint": "", "rejected": {"truncated": 2}}
    _record(context, Source(dataset="folder", root="/data/pool"), manifest, [], {})
    assert f"rejected: 2 truncated (listed in {tmp_path}/[/old]/rejected.parquet)" in printed.getvalue()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_power_never_brings_shards_of_former_files_under_a_new_witness(ingest, pool, tmp_path, loss):
    folder = ingest(join=False)
    for path in pool.iterdir():
        os.utime(path, ns=(0, 10**18))
    with disturbed(Disk(tmp_path)) as disk:
        _begin(folder, Folder(pool), str(pool))
        write_tree(tmp_path.with_name(f"{tmp_path.name}-found"), disk.left(LOSSES[loss]))
    found = tmp_path.with_name(f"{tmp_path.name}-found") / "store"
    if Witness(found).digest == digest_of_files(Folder(pool).sources()):
        assert not list((found / "shards").iterdir())
