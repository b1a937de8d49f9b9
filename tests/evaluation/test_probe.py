"""The probe: whom it looks for among whom, and that looking changes nothing."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.evaluation.probe import QUERY_SHARE, choose_probe, extract, findable_identities
from rayreid.evaluation.retrieval import evaluate_retrieval
from rayreid.evaluation.spread import effective_rank
from rayreid.models.backbones import build_backbone

CPU = torch.device("cpu")
TRANSFORM = ReIDTest((32, 16), (0.5,) * 3, (0.5,) * 3)
IMAGES = 300  # more than a batch for each worker, and not the same number of batches


def labels(seed=0, images=600, identities=40, cameras=4):
    rng = np.random.default_rng(seed)
    return rng.integers(-1, identities, images).astype(np.int32), rng.integers(0, cameras, images).astype(np.int16)


# Whom it looks for


def test_queries_and_gallery_are_parts_of_the_split_s_identities():
    pids, camids = labels()
    rows = np.arange(100, 600)
    probe = choose_probe(pids, camids, rows, 10_000)
    assert len(set(probe.rows)) == len(probe.rows)
    assert set(probe.rows) == {row for row in rows if pids[row] in findable_identities(pids[rows], camids[rows])}
    np.testing.assert_array_equal(probe.pids, pids[probe.rows])
    np.testing.assert_array_equal(probe.camids, camids[probe.rows])
    asked, kept = probe.pids[: probe.queries], probe.pids[probe.queries :]
    assert set(asked) == set(kept) == set(probe.pids) and (probe.pids >= 0).all()
    for pid in set(asked):
        assert (asked == pid).sum() == -(-(probe.pids == pid).sum() // QUERY_SHARE)


def test_whole_identities_are_drawn_up_to_a_number_of_images():
    pids, camids = labels()
    whole = choose_probe(pids, camids, np.arange(600), 10_000)
    part = choose_probe(pids, camids, np.arange(600), 100)
    assert 80 < len(part.rows) <= 100
    for pid in set(part.pids):
        assert set(part.rows[part.pids == pid]) == set(whole.rows[whole.pids == pid])
    assert len(set(choose_probe(pids, camids, np.arange(600), 4).pids)) == 2


def test_the_draw_is_the_same_every_time_and_not_the_first_identities():
    pids, camids = labels()
    first, second = (choose_probe(pids, camids, np.arange(600), 100) for _ in range(2))
    np.testing.assert_array_equal(first.rows, second.rows)
    assert set(first.pids) != set(range(len(set(first.pids))))


@pytest.mark.parametrize(
    ("pids", "camids", "expected"),
    [
        ([5, 5], [1, 2], [5]),
        ([5, 5], [1, 1], []),
        ([5, 5], [-1, -1], [5]),
        ([5, 5], [-1, 2], [5]),
        ([5], [1], []),
        ([-1, -1], [1, 2], []),
        ([7, 5, 7, 5, 6], [1, 1, 1, 2, 3], [5]),
        ([], [], []),
    ],
)
def test_an_identity_can_be_found_by_another_camera_only(pids, camids, expected):
    pids, camids = np.array(pids, np.int32), np.array(camids, np.int16)
    assert findable_identities(pids, camids).tolist() == expected
    if not expected:
        with pytest.raises(UserError, match=r"pretrain\.probe_every=0"):
            choose_probe(pids, camids, np.arange(len(pids)), 100)
        return
    probe = choose_probe(pids, camids, np.arange(len(pids)), 100)
    assert probe.score(torch.ones(len(probe.rows), 3))["probe_rank1"] >= 0  # some query is counted


def test_the_figures_are_those_of_the_evaluation():
    probe = choose_probe(*labels(), np.arange(600), 10_000)
    features = torch.randn(len(probe.rows), 8, generator=torch.Generator().manual_seed(0))
    n = probe.queries
    report = evaluate_retrieval(
        features[:n], features[n:], probe.pids[:n], probe.pids[n:], probe.camids[:n], probe.camids[n:]
    )
    found = probe.score(features)
    assert (found["probe_mAP"], found["probe_rank1"]) == (report.mAP, report.cmc[0])
    assert found["probe_effective_rank"] == effective_rank(features)
    identity = torch.eye(40)[torch.from_numpy(probe.pids).long()]
    assert probe.score(identity).items() >= {"probe_mAP": 1.0, "probe_rank1": 1.0}.items()


# How it looks


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "store"
    records = [Record(f"{n:03d}.jpg", n % 50, n % 3, "train", str(n)) for n in range(IMAGES)]
    write_shard(folder, 0, records, noise, "header")
    finish_store(folder, 1, "noise", "1")
    return folder


def noise(record: Record) -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(int(record.path))
    size = (32 + int(record.path) % 5, 16, 3)
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def trained() -> torch.nn.Module:
    """A backbone with batch norm and drop path whose running statistics are not those of a fresh one."""
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", "ics", (32, 16), 1, drop_path=0.5, embed_dim=24, num_heads=2)
    backbone(torch.randn(8, 3, 32, 16))
    return backbone


look = partial(extract, transform=TRANSFORM, device=CPU)


def test_features_are_those_of_a_plain_loop_in_eval_mode(store):
    images, rows, backbone = ImageStore(store), np.random.default_rng(0).permutation(IMAGES), trained()
    features = look(backbone, images, rows)
    with torch.inference_mode():
        one_by_one = [backbone.eval()(TRANSFORM(ImageBatch.collate([images.image(row)]))) for row in rows[:20]]
    torch.testing.assert_close(features[:20], torch.cat(one_by_one), rtol=1e-4, atol=1e-5)
    assert features.shape == (IMAGES, 24) and features.dtype == torch.float32


def test_nothing_is_changed(store):
    backbone = trained()
    backbone.norm.eval()
    modes = {name: module.training for name, module in backbone.named_modules()}
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    generator = torch.get_rng_state()
    look(backbone, ImageStore(store), np.arange(20))
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert any(modes.values()) and not modes["norm"]
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    backbone(torch.randn(2, 3, 32, 16)).sum().backward()  # nothing of it is in the way of training


def test_the_modes_come_back_after_a_fault(store):
    backbone = trained()
    with pytest.raises(IndexError):
        look(backbone, ImageStore(store), np.array([IMAGES]))
    assert backbone.training


def _worker(rank: int, store: Path) -> list[torch.Tensor]:
    # An odd number of images, and of those a worker without any
    return [look(trained(), ImageStore(store), np.arange(images)) for images in (IMAGES - 1, 1)]


def test_two_workers_see_what_one_sees(store, gloo):
    workers = gloo(_worker, store)
    for number, images in enumerate((IMAGES - 1, 1)):
        alone = look(trained(), ImageStore(store), np.arange(images))
        for features in workers:
            torch.testing.assert_close(features[number], alone, rtol=1e-4, atol=1e-5)
