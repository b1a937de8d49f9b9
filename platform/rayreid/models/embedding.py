"""Forward passes over the images of a store or folder, with decoding ahead and batches as large as memory allows."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from rayreid.data.ahead import in_order
from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.batch import ImageBatch
from rayreid.data.images import BadImageError
from rayreid.data.store.listed import Images
from rayreid.devices import current, is_out_of_memory
from rayreid.errors import UserError
from rayreid.models.neck import load_neck
from rayreid.models.weights import load_backbone
from rayreid.training.compilation import compiled, resolve_compile
from rayreid.training.loop import WantedPrecision, autocast, resolve_precision

Auto = Literal["auto"]
Token = Literal["class", "patch"]

AUTO_BATCH = {"cpu": 32, "cuda": 512}
"""Images per forward pass by default. The CPU value was measured; a batch should not exceed the CPU's caches. The
GPU value is a starting point, see `Pass`."""

_AHEAD = 2  # number of batches that are decoded while another is in the forward pass
_PART = 16  # number of images that one thread decodes at a time

_Part = tuple[list[int], list[np.ndarray], list[tuple[int, str]]]
_Decoded = tuple[np.ndarray, ImageBatch | None, list[tuple[int, str]]]
"""Rows int64 (n,), their images, and (row, reason) of images that could not be decoded."""


class Embedder:
    """A backbone with the image size, mean, std and interpolation that its weights file states.

    If the file has a neck, the features are those after it.

    Args:
        path: Weights written by this project.
        device: Device of the forward pass.
        precision: Precision of the forward pass; features are returned in float32.
        compile: Whether to compile the forward pass; "auto": on a GPU.
        strict: See `rayreid.models.weights.load_weights`.
        after: See `rayreid.models.neck.load_neck`.
        token: "class": the global feature. "patch": the mean of a ViT's patch tokens, without a neck.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        precision: WantedPrecision,
        compile: bool | Auto = "auto",
        strict: bool = True,
        after: bool = False,
        token: Token = "class",
    ):
        backbone, header = load_backbone(path, strict, drop_path=0.0)
        self.backbone = backbone.eval().to(device)
        self.neck = load_neck(path, after).to(device)
        self.token = token
        height, width = backbone.spec["img_size"]
        how = header.get("interpolation", "bilinear")
        self.transform = ReIDTest((height, width), header["mean"], header["std"], how)
        self.device, self.precision = device, resolve_precision(precision, device)
        self.compile = resolve_compile(compile, device)

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> torch.Tensor:
        """Return features, float32 (B, D), not normalised.

        Raises:
            UserError: The mean of the patch tokens is wanted of a backbone that has none.
        """
        with current(self.device):
            return self._features(images)

    def _features(self, images: ImageBatch) -> torch.Tensor:
        crops = self.transform(images.to(self.device, non_blocking=True))
        with autocast(self.precision, self.device), compiled(self.compile):
            filled = _filled(crops) if self.compile else crops
            if self.token == "patch":
                return self.backbone.patch_features(filled)[: len(crops)].float()
            features: torch.Tensor = self.backbone.features([filled])
        out: torch.Tensor = self.neck(features[: len(crops)].float())
        return out


def _filled(crops: torch.Tensor) -> torch.Tensor:
    """Return the crops (B, 3, H, W), padded with zeros to a power of two, to compile code for few batch sizes."""
    missing = (1 << (len(crops) - 1).bit_length()) - len(crops)
    return torch.nn.functional.pad(crops, (0, 0) * 3 + (0, missing)) if missing else crops


class BatchFunction(Protocol):
    """A function of a decoded batch."""

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        """Return (B, …) values."""


class Pass:
    """A pass that applies a head to images.

    While one batch is in the head, the next ones are decoded. If the device's memory does not suffice for a batch, the
    batch is halved, and the smaller size is kept from then on.

    Args:
        store: The images.
        head: The function to compute for them.
        batch_size: Images per forward pass; "auto": see `AUTO_BATCH`.
        device: Device of the head.
        threads: Number of decoding threads.
    """

    def __init__(self, store: Images, head: BatchFunction, batch_size: int | Auto, device: torch.device, threads: int):
        self.store, self.head = store, head
        self.batch_size = AUTO_BATCH[device.type] if batch_size == "auto" else batch_size
        self._pinned = device.type == "cuda"
        self._decoders = ThreadPoolExecutor(threads)
        self._collator = ThreadPoolExecutor(1)

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Compute the head for index rows.

        Returns:
            Rows int64 (n,), values (n, …), and {row: reason} of the images that could not be decoded.

        Raises:
            UserError: The store or the head raises it, or not even one image fits the device's memory.
        """
        good: list[np.ndarray] = [np.zeros(0, np.int64)]
        values: list[np.ndarray] = []
        broken: dict[int, str] = {}
        for whole, images, bad in self._decoded(rows):
            if images is not None:
                good.append(whole)
                values += self._values(images, self.store.keys_of(whole).to_pylist())
            broken.update(bad)
        return np.concatenate(good), np.concatenate(values) if values else np.zeros(0, np.float32), broken

    def _values(self, images: ImageBatch, keys: list[str]) -> list[np.ndarray]:
        """Return the head's values for a batch, from one forward pass, or from smaller ones if memory is short."""
        values: list[np.ndarray] = []
        done = 0
        while done < len(keys):
            stop = done + self.batch_size
            batch = images.part(done, stop)
            try:
                values.append(self.head(batch, keys[done:stop]))
                done += len(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise UserError("not even one image at a time fits the GPU's memory: free some of it") from None
                self.batch_size //= 2
                torch.cuda.empty_cache()
        return values

    def _decoded(self, rows: np.ndarray) -> Iterator[_Decoded]:
        for _, batch in in_order(self._collator, self._joined, self._parts(rows), _AHEAD + 1):
            yield batch.result()

    def _parts(self, rows: np.ndarray) -> Iterator[list["Future[_Part]"]]:
        """Yield the parts of each batch, being decoded; the batch size is read again for every batch."""
        start = 0
        while start < len(rows):
            batch = rows[start : start + self.batch_size]
            start += len(batch)
            parts = [batch[first : first + _PART] for first in range(0, len(batch), _PART)]
            yield [self._decoders.submit(self._decode, part) for part in parts]

    def _decode(self, rows: np.ndarray) -> _Part:
        whole, images, broken = [], [], []
        numbers = rows.tolist()
        for row, image in zip(numbers, self.store.decoded(numbers), strict=True):
            if isinstance(image, BadImageError):
                broken.append((row, str(image)))
            else:
                images.append(image)
                whole.append(row)
        return whole, images, broken

    def _joined(self, parts: list["Future[_Part]"]) -> _Decoded:
        """Return one batch of the images that were decoded in parts."""
        whole: list[int] = []
        images: list[np.ndarray] = []
        broken: list[tuple[int, str]] = []
        for rows, pictures, bad in (part.result() for part in parts):
            whole += rows
            images += pictures
            broken += bad
        return np.asarray(whole, np.int64), ImageBatch.collate(images, self._pinned) if images else None, broken
