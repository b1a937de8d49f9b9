"""Forward passes over a store: decoded ahead, in batches that fit."""

import io
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.models import embedding
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import AUTO_BATCH, Embedder, Pass
from rayreid.models.weights import save_backbone
from rayreid.training.compilation import compiled

IMAGES = 100
CPU = torch.device("cpu")


def brightness(row: int) -> int:
    return 2 * row + 20


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    """Grey images, each of its own brightness; of every tenth the file is cut short."""
    folder = tmp_path_factory.mktemp("store")

    def read(record: Record) -> bytes:
        number = int(record.path)
        buffer = io.BytesIO()
        Image.new("L", (8, 16), brightness(number)).save(buffer, "PNG")
        return buffer.getvalue()[: -30 if number % 10 == 0 else None]

    records = [Record(f"{n:03d}.png", -1, -1, "pool", str(n)) for n in range(IMAGES)]
    write_shard(folder, 0, records, read, "header")
    finish_store(folder, 1, "grey", "")
    return ImageStore(folder)


class Brightness:
    """A head: the brightness of each image; memory holds some images at a time."""

    def __init__(self, room: int = 10**6, error: Exception | None = None):
        self.room, self.batches, self.keys = room, [], []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, images, keys):
        self.batches.append(len(images))
        if len(images) > self.room:
            raise self.error
        self.keys += keys
        return images.pixels[images.offsets].float().numpy()[:, None]


WHOLE = [row for row in range(IMAGES) if row % 10]


@pytest.mark.parametrize("batch_size", [1, 7, "auto", 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_values_come_by_row_whatever_the_batches(store, batch_size, threads):
    head = Brightness()
    rows = np.random.default_rng(0).permutation(IMAGES)
    good, values, broken = Pass(store, head, batch_size, CPU, threads)(rows)
    assert good.tolist() == [row for row in rows.tolist() if row % 10]
    assert values[:, 0].tolist() == [brightness(row) for row in good]
    assert head.keys == [f"{row:03d}.png" for row in good]
    assert sorted(broken) == list(range(0, IMAGES, 10)) and all("truncated" in reason for reason in broken.values())
    assert max(head.batches) <= (AUTO_BATCH["cpu"] if batch_size == "auto" else batch_size)


def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(store):
    head = Brightness(room=12)
    run = Pass(store, head, 64, CPU, 2)
    good, values, _ = run(np.arange(IMAGES))
    assert good.tolist() == WHOLE and values[:, 0].tolist() == [brightness(row) for row in WHOLE]
    assert head.batches[:4] == [57, 32, 16, 8] and max(head.batches[3:]) == 8
    run(np.array([1, 2]))
    assert run.batch_size == 8


@pytest.mark.parametrize(
    "said", ["Triton Error [CUDA]: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"]
)
def test_other_libraries_of_the_gpu_find_no_memory_either(store, said):
    head = Brightness(room=12, error=RuntimeError(said))
    assert Pass(store, head, 64, CPU, 2)(np.arange(IMAGES))[0].tolist() == WHOLE
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Pass(store, Brightness(room=12, error=RuntimeError("illegal memory access")), 64, CPU, 2)(np.arange(IMAGES))


def test_one_image_that_does_not_fit_is_the_users_to_mend(store):
    with pytest.raises(UserError, match="not even one image"):
        Pass(store, Brightness(room=0), 4, CPU, 1)(np.arange(IMAGES))


def test_only_some_batches_are_decoded_ahead(store, monkeypatch):
    decoded, seen = [], []
    original = Pass._decode

    def noting(self, rows):
        decoded.extend(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(Pass, "_decode", noting)
    gate = threading.Event()

    def head(images, keys):
        gate.wait(0.05)  # time for whatever would run ahead
        seen.append(len(decoded))
        return np.zeros(len(images), np.float32)

    Pass(store, head, 10, CPU, 2)(np.arange(IMAGES))
    assert seen[0] <= 40 and len(decoded) == IMAGES


def test_nothing_whole_gives_nothing(store):
    good, values, broken = Pass(store, Brightness(), 8, CPU, 1)(np.array([0, 10]))
    assert len(good) == len(values) == 0 and sorted(broken) == [0, 10]


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", "ics", (64, 32), depth=2).eval()
    save_backbone(tmp_path / "model.safetensors", backbone, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return tmp_path / "model.safetensors"


def pictures(count: int) -> ImageBatch:
    generator = np.random.default_rng(0)
    return ImageBatch.collate([generator.integers(0, 256, (70 + n, 30, 3), np.uint8) for n in range(count)])


def test_compiled_features_are_the_eager_ones_at_any_batch_size(weights, monkeypatch):
    monkeypatch.setattr(embedding, "compiled", partial(compiled, backend="aot_eager"))
    eager, fast = (Embedder(weights, CPU, "fp32", compile) for compile in (False, True))
    for count in (1, 5, 8):
        torch.testing.assert_close(fast(pictures(count)), eager(pictures(count)), rtol=1e-4, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert fast(pictures(7)).shape == (7, 192)  # filled up to 8


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_the_cpu_s_features(weights, precision, compile):
    here = Embedder(weights, CPU, "fp32", False)
    there = Embedder(weights, torch.device("cuda"), precision, compile)
    for count in (1, 5):
        expected, found = here(pictures(count)), there(pictures(count)).cpu()
        assert found.dtype == torch.float32
        least = 0.9999 if precision == "fp32" else 0.999
        assert torch.nn.functional.cosine_similarity(found, expected).min() > least


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_a_gpu_is_halved(store):
    class Large:
        """A head that asks for more memory than any GPU has where a batch is of more than 12 images."""

        def __init__(self):
            self.batches = []

        def __call__(self, images, keys):
            self.batches.append(len(images))
            there = images.to("cuda", non_blocking=True)
            torch.empty(2**50 if len(images) > 12 else 1, dtype=torch.uint8, device="cuda")
            return there.pixels.cpu()[images.offsets].float().numpy()[:, None]

    head = Large()
    run = Pass(store, head, 64, torch.device("cuda"), 2)
    good, values, _ = run(np.arange(IMAGES))
    assert good.tolist() == WHOLE and values[:, 0].tolist() == [brightness(row) for row in WHOLE]
    assert head.batches[:4] == [57, 32, 16, 8] and run.batch_size == 8


@pytest.mark.parametrize("compile", [False, True])
def test_the_patch_tokens_take_the_place_of_the_class_token(store, tmp_path, compile, monkeypatch):
    monkeypatch.setattr(embedding, "resolve_compile", lambda wanted, device: wanted)
    monkeypatch.setattr(embedding, "compiled", lambda wanted: compiled(False))
    path = tmp_path / "w.safetensors"
    save_backbone(path, build_backbone("vit_tiny", img_size=(32, 16), depth=1), (0.5,) * 3, (0.5,) * 3)
    images = ImageBatch.collate(list(store.decoded([1, 2, 3])))
    embed = Embedder(path, CPU, "fp32", compile, token="patch")
    crops = embed.transform(images)
    with torch.inference_mode():
        expected = embed.backbone.patch_features(crops)
    torch.testing.assert_close(embed(images), expected)
    assert (Embedder(path, CPU, "fp32", False)(images) - expected).abs().max() > 0.01
