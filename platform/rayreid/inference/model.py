"""A trained model in this process: features of images, and search among images, for Python code."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayreid.data.batch import ImageBatch
from rayreid.data.store.feature_file import FeatureTable
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.disk_faults import told_to_user
from rayreid.errors import UserError
from rayreid.inference.given_images import GivenImages, Pictures, open_given
from rayreid.inference.named_inputs import ModelFile, find_model, rows_of
from rayreid.inference.ranked_gallery import rank_gallery, read_gallery
from rayreid.models.embedding import AUTO_BATCH, Auto, Embedder, Pass
from rayreid.models.weights import read_header

if TYPE_CHECKING:
    import pandas as pd

_UNKNOWN = -1


class Model:
    """A trained model: its features of images, and search with them, computed in this process.

    For more images than one process computes in an acceptable time, `rayreid predict` uses all GPUs or CPUs of a Ray
    cluster, and writes a file that `search` reads.

    Attributes:
        path: The weights file.
        size: Height and width in pixels to which images are resized.
        dimensions: D, the number of values of a feature.
        device: The device of the forward pass.
        facts: What the weights file records about itself: `backbone`, `mean`, `std`, `method`, `epochs`.
    """

    def __init__(self, file: ModelFile, device: torch.device):
        self._file = file
        self._embed = Embedder(file.weights, device, "fp32", compile=False, strict=file.strict)
        self.path = file.weights
        self.size: tuple[int, int] = self._embed.transform.size
        self.dimensions = int(self._embed.backbone.num_features)
        self.device = device

    @classmethod
    def load(cls, model: str | Path, device: str | torch.device = "auto", strict: bool = True) -> "Model":
        """Load a model.

        Args:
            model: A weights file that rayreid wrote, an artifact that contains one (its folder, or `stage/id` under
                `RAYREID_ROOT`), or a folder that `rayreid publish` wrote.
            device: `auto` (the GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:1`.
            strict: Whether all tensors of the file must fit; otherwise those that fit are loaded.

        Raises:
            rayreid.UserError: There is no such model, device or artifact, the file is of another origin (convert it
                with `rayreid weights convert`), or its tensors do not fit.
        """
        with told_to_user():
            return cls(find_model(str(model), strict), device_named(device))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return the header of the weights file."""
        return read_header(self.path)

    def embed(self, images: Pictures, batch_size: int | Auto = "auto", unit: bool = True) -> np.ndarray:
        """Return the features by which this model compares images.

        Images are resized and normalised as in evaluations of the model; they may have different sizes.

        Args:
            images: One image or several (see `keys` for their order): the path of a file, a folder or an image store;
                an image of Pillow; an array uint8 (H, W, 3) or (N, H, W, 3) in RGB; a tensor uint8 (3, H, W) or
                (N, 3, H, W); or a sequence of paths, images, arrays and tensors in any mixture.
            batch_size: Images per forward pass; `auto`: 32 on a CPU, and on a GPU 512, halved as often as its memory
                asks for.
            unit: Whether features have length 1, so that their dot product is the cosine similarity; otherwise they
                are those of the network, as `rayreid predict` writes them.

        Returns:
            float32 (N, D), one row per image.

        Raises:
            rayreid.UserError: There is no image, one cannot be read or decoded, or is of another type or shape; or
                features are not finite.
        """
        with told_to_user():
            source = open_given(images)
            features = self._features(source, np.arange(len(source)), batch_size)
        return _unit(features) if unit else features

    def keys(self, images: Pictures) -> list[str]:
        """Return the names of images, in the order of the rows of `embed`.

        These are the paths relative to a folder, ascending; the keys of an image store, ascending; the paths in a
        sequence as they are given; and the positions ("0", "1", …) of images in memory.

        Raises:
            rayreid.UserError: See `embed`.
        """
        with told_to_user():
            return [str(key) for key in open_given(images).keys]

    def search(
        self,
        gallery: Pictures,
        query: Pictures,
        k: int = 10,
        split: str | None = None,
        batch_size: int | Auto = "auto",
    ) -> "pd.DataFrame":
        """Rank a gallery by cosine similarity to each query.

        Args:
            gallery: Images as for `embed`; a Parquet file of features that `rayreid predict` wrote with this model; or
                features float (G, D) that `embed` returned.
            query: Images as for `embed`, or features float (Q, D).
            k: Number of gallery images per query; all of them if the gallery has fewer.
            split: Use only gallery images of this split of an image store or a file of features, e.g. `gallery`.
            batch_size: See `embed`.

        Returns:
            One row per query and rank, with the columns `query` (its key, see `keys`), `rank` (from 1), `key`,
            `similarity` (in [-1, 1]), and `pid` and `camid` (-1: not known).

        Raises:
            rayreid.UserError: As for `embed`; or k is not positive, the gallery is empty, has no splits or no such
                split, or holds features of another model; or features are not real, finite numbers.
        """
        import pandas as pd

        if k < 1:
            raise UserError(f"k={k}: give a positive number of results")
        with told_to_user():
            asked = self._table("query", query, None, batch_size)
            table = self._table("gallery", gallery, split, batch_size)
            found, _ = rank_gallery(asked.keys.tolist(), asked.features, table, k)
        rows = [
            (one.query, number, *ranked)
            for one in found
            for number, ranked in enumerate(zip(one.keys, one.scores, one.pids, one.camids, strict=True), start=1)
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "key", "similarity", "pid", "camid"])

    def __repr__(self) -> str:
        height, width = self.size
        name = self.facts["backbone"]["name"]
        return f"<rayreid.Model {name}, {height}x{width} pixels to {self.dimensions} values, on {self.device}>"

    def _table(self, name: str, given: Pictures, split: str | None, batch_size: int | Auto) -> FeatureTable:
        """Return images with their features, computed, read from a file, or as they are given."""
        if isinstance(given, str | Path) and str(given).endswith(".parquet"):
            return read_gallery(str(given), self._file, split)
        if isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 2 and given.dtype not in _PIXELS:
            if split is not None:
                raise UserError(f"split={split}: {_NO_SPLITS}")
            features = _real(name, given)
            if features.shape[1] != self.dimensions:
                raise UserError(
                    f"{name}: features have {features.shape[1]} values, and those of this model {self.dimensions}"
                )
            return _unlabelled(np.array([str(row) for row in range(len(features))], object), features)
        source = open_given(given)
        if isinstance(source, GivenImages):
            if split is not None:
                raise UserError(f"split={split}: {_NO_SPLITS}")
            return _unlabelled(source.keys, self._features(source, np.arange(len(source)), batch_size))
        rows = rows_of(source, split)
        if not len(rows):
            raise UserError(f"{name}: no image of split {split!r}; it has {', '.join(sorted(set(source.splits)))}")
        features = self._features(source, rows, batch_size)
        return FeatureTable(
            source.keys[rows], features, source.pids[rows], source.camids[rows], source.splits[rows], {}
        )

    def _features(
        self, source: ImageStore | ListedImages | GivenImages, rows: np.ndarray, batch_size: int | Auto
    ) -> np.ndarray:
        """Return raw features float32 (N, D) of some rows."""
        if batch_size != "auto" and batch_size < 1:
            raise UserError(f"batch_size={batch_size}: give a positive number, or auto")
        forward = Pass(source, self._head, batch_size, self.device, torch.get_num_threads())
        _, values, broken = forward(rows)
        if broken:
            row, reason = next(iter(broken.items()))
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise UserError(
                f"image {str(source.keys[row])!r}: {reason}{more}; leave it out, or use rayreid predict, which lists "
                "such images"
            )
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: features hold NaN or infinity: the model has diverged")
        return np.asarray(values, np.float32)

    def _head(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        features: np.ndarray = self._embed(images).cpu().numpy()
        return features


_NO_SPLITS = "only an image store or a file of features has splits"
_PIXELS = (np.dtype(np.uint8), torch.uint8)


def device_named(name: str | torch.device) -> torch.device:
    """Return a device by its name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        UserError: There is no such device, or rayreid does not use devices of its kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: there is no such device; give auto, cpu or cuda") from None
    if device.type not in AUTO_BATCH:
        raise UserError(f"device={name}: rayreid computes on cpu and cuda; give one of these, or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: {torch.cuda.device_count()} GPUs are visible here; give auto or cpu")
    return device


def _real(name: str, given: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return features that a caller gives as float32.

    Raises:
        UserError: They are not real numbers, or not finite.
    """
    if isinstance(given, torch.Tensor):
        what, real = "tensor", given.dtype != torch.bool and not given.dtype.is_complex
    else:
        what, real = "array", given.dtype.kind in "fiu"
    if not real:
        raise UserError(f"{name}: features are real numbers, and this {what} is {given.dtype}")
    values = given.detach().float().cpu().numpy() if isinstance(given, torch.Tensor) else given
    features: np.ndarray = np.asarray(values, np.float32)
    if not np.isfinite(features).all():
        raise UserError(f"{name}: features hold NaN or infinity; leave out the rows that do")
    return features


def _unlabelled(keys: np.ndarray, features: np.ndarray) -> FeatureTable:
    count = len(keys)
    unknown = np.full(count, _UNKNOWN)
    return FeatureTable(
        keys, features, unknown.astype(np.int32), unknown.astype(np.int16), np.full(count, "", object), {}
    )


def _unit(features: np.ndarray) -> np.ndarray:
    unit: np.ndarray = torch.nn.functional.normalize(torch.from_numpy(features), dim=1).numpy()
    return unit
