"""The work that an artifact takes: images, steps and arithmetic, from its identity and the sizes of datasets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayreid.config import Adapt, Backbone, Finetune, Pretrain, Select
from rayreid.errors import UserError
from rayreid.models.cost import Cost, forward_cost
from rayreid.pipeline.forecast.figures import FEATURE_WIDTH
from rayreid.pipeline.forecast.images import ImageCount, ImageCounts
from rayreid.stages import finetune
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role

TRAININGS = ("pretrain", "finetune", "adapt")
INFERENCES = ("score", "features", "evaluate")


class UnknownSizeError(UserError):
    """Raised where the work of an artifact depends on a dataset whose size is not known."""


@dataclass(frozen=True)
class Workload:
    """The work of one artifact.

    Attributes:
        images: Number of images that it is made of.
        steps: Number of optimizer steps; 0 if it is no training.
        seen: Number of images that pass through the network, each as often as it does.
        gflop: All of their arithmetic, in 10⁹ operations: three times a forward pass where gradients are computed.
        network: The network; None if there is none.
        assumed: Datasets whose published size was assumed.
    """

    images: int
    steps: int = 0
    seen: int = 0
    gflop: float = 0.0
    network: Backbone | None = None
    assumed: tuple[str, ...] = ()


class Workloads:
    """The work of artifacts, each computed once.

    Args:
        counts: The sizes of the datasets.
    """

    def __init__(self, counts: ImageCounts):
        self._counts = counts
        self._known: dict[str, Workload | str] = {}

    def of(self, artifact: Artifact) -> Workload:
        """Return the work of an artifact.

        Raises:
            UnknownSizeError: A dataset that decides it is not here, and no published one.
        """
        if artifact.id not in self._known:
            try:
                self._known[artifact.id] = self._work(artifact)
            except UserError as error:
                self._known[artifact.id] = str(error)
        known = self._known[artifact.id]
        if isinstance(known, str):
            raise UnknownSizeError(known)
        return known

    def _work(self, artifact: Artifact) -> Workload:
        make = {
            "ingest": self._ingest,
            "select": self._select,
            "pretrain": self._pretrain,
            "finetune": self._finetune,
            "adapt": self._adapt,
            "score": self._score,
            "features": self._features,
            "quality": self._of_pool,
            "priority": self._priority,
            "evaluate": self._evaluate,
        }.get(artifact.stage)
        return Workload(0) if make is None else make(artifact)

    def _count(self, store: Artifact) -> tuple[ImageCount, tuple[str, ...]]:
        found = self._counts.of(store)
        if found is None:
            source = store.fields["source"]
            raise UnknownSizeError(f"the size of dataset {source['dataset']} {source['root'] or ''}".strip())
        source = store.fields["source"]
        return found, (source["root"] or source["dataset"],) if found.origin == "published" else ()

    def _ingest(self, artifact: Artifact) -> Workload:
        count, assumed = self._count(artifact)
        return Workload(count.total, assumed=assumed)

    def _select(self, artifact: Artifact) -> Workload:
        count, assumed = self._count(artifact.inputs["pool"])
        size = {name: artifact.fields["select"][name] for name in ("fraction", "count")}
        return Workload(Select(**size).size(count.total), assumed=assumed)

    def _pretrain(self, artifact: Artifact) -> Workload:
        config, network = Pretrain(**artifact.fields["pretrain"]), Backbone(**artifact.fields["backbone"])
        count, assumed = self._count(artifact.inputs["pool"])
        images = self.of(artifact.inputs["subset"]).images if "subset" in artifact.inputs else count.total
        steps = config.epochs * (images // config.batch_size) if config.steps is None else config.steps
        seen = steps * config.batch_size
        return Workload(images, steps, seen, seen * _pretraining_gflop(config, network), network, assumed)

    def _finetune(self, artifact: Artifact) -> Workload:
        config, network = Finetune(**artifact.fields["finetune"]), Backbone(**artifact.fields["backbone"])
        count, assumed = self._count(artifact.inputs["target"])
        steps = config.epochs * _steps_per_epoch(config, count, artifact.fields["seed"])
        seen = steps * config.batch_size
        return Workload(count.train, steps, seen, 3 * seen * cost_of(network).gflop, network, assumed)

    def _adapt(self, artifact: Artifact) -> Workload:
        config, network = Adapt(**artifact.fields["adapt"]), Backbone(**artifact.fields["backbone"])
        count, assumed = self._count(artifact.inputs["target"])
        images, steps = count.splits.get("train", 0), config.epochs * config.iterations
        seen = steps * config.clusters * config.instances
        passes = 3 * seen + config.epochs * images  # before every epoch all images are extracted
        return Workload(images, steps, seen, passes * cost_of(network).gflop, network, assumed)

    def _score(self, artifact: Artifact) -> Workload:
        count, assumed = self._count(artifact.inputs["pool"])
        network = _network_of(artifact.inputs["source"])
        proxies = 1 + sum(Role(role).kind == "target" for role in artifact.inputs)
        return Workload(count.total, 0, count.total, proxies * count.total * cost_of(network).gflop, network, assumed)

    def _features(self, artifact: Artifact) -> Workload:
        count, assumed = self._count(artifact.inputs["images"])
        compared = count.train or count.splits.get("train") or count.splits.get("pool", 0)  # as in `features.rows_of`
        images = count.total if artifact.fields["part"] == "all" else compared
        network = _network_of(artifact.inputs["source"])
        return Workload(images, 0, images, images * cost_of(network).gflop, network, assumed)

    def _of_pool(self, artifact: Artifact) -> Workload:
        count, assumed = self._count(artifact.inputs["pool"])
        return Workload(count.total, assumed=assumed)

    def _priority(self, artifact: Artifact) -> Workload:
        """Return the work of ranking a pool: the similarities of its images to those of targets, where these count."""
        count, assumed = self._count(artifact.inputs["pool"])
        near = sum(self.of(found).images for role, found in artifact.inputs.items() if _is_of_target(role))
        return Workload(count.total, gflop=2e-9 * FEATURE_WIDTH * count.total * near, assumed=assumed)

    def _evaluate(self, artifact: Artifact) -> Workload:
        count, assumed = self._count(artifact.inputs["target"])
        images = count.splits.get("query", 0) + count.splits.get("gallery", 0)
        network = _network_of(artifact.inputs["model"])
        return Workload(images, 0, images, images * cost_of(network).gflop, network, assumed)


def _is_of_target(role: str) -> bool:
    return Role(role).kind == "target_features"


def cost_of(network: Backbone, crop: tuple[int, int] | None = None) -> Cost:
    """Return the cost of a configured network for images of its size, or of another one."""
    options = tuple(sorted(network.options().items()))
    return forward_cost(network.name, network.stem, network.img_size, network.depth, crop, options)


def head_parameters(config: Pretrain, network: Backbone) -> int:
    """Return the number of parameters of DINO's head, the largest of all methods' heads; 0 for other methods."""
    if config.method != "dino":
        return 0
    recipe = config.recipe(network)
    width = 384  # the head's first layer is its smallest by far
    hidden, bottleneck = recipe.hidden_dim, config.bottleneck_dim
    return width * hidden + hidden**2 + hidden * bottleneck + bottleneck * recipe.out_dim


def _pretraining_gflop(config: Pretrain, network: Backbone) -> float:
    """Return the arithmetic of an image, as docs/performance.md counts it: forward and backward passes of all crops."""
    recipe = config.recipe(network)
    _, small = config.crop_sizes(network.img_size, network.patch)
    large = cost_of(network).gflop
    if config.method == "mocov2":  # one crop with a gradient, one without
        return 4 * large
    if config.method != "dino":
        return 8 * large
    head = 2 * head_parameters(config, network) / 1e9
    local = recipe.local_crops * cost_of(network, small).gflop if recipe.local_crops else 0.0
    return 3 * (2 * large + local + (2 + recipe.local_crops) * head) + 2 * (large + head)


def _steps_per_epoch(config: Finetune, count: ImageCount, seed: int) -> int:
    """Return the steps of an epoch as its plan draws them; about so many where only the number of images is known."""
    if count.pids is None or count.camids is None:
        return max(1, count.train // config.batch_size)
    return finetune.sampling(config, np.arange(len(count.pids)), count.pids, count.camids, seed).steps_per_epoch


def _network_of(weights: Artifact) -> Backbone:
    """Return the network of some weights; the default one for a file of the user's, which is not read here."""
    fields: Mapping[str, Any] = weights.fields
    return Backbone(**fields["backbone"]) if "backbone" in fields else Backbone()
