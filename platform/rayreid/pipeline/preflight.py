"""Checks before anything starts that find errors which would otherwise appear only later."""

from collections.abc import Callable, Iterable, Mapping

from rich.markup import escape

from rayreid.config import Adapt, Backbone, Experiment, Finetune, Pretrain, Source
from rayreid.console import Screen
from rayreid.data.datasets import location
from rayreid.errors import UserError
from rayreid.evaluation.probe import NOTHING_TO_FIND
from rayreid.execution.resources import training_share
from rayreid.neighbours.knn import require_faiss
from rayreid.pipeline.dataset_facts import Contents, Datasets
from rayreid.pipeline.selection_graph import check_proxies, finetunes_proxies, needs_source, pretrains_proxy
from rayreid.selection.filelist import read_list
from rayreid.selection.quality_rules import parse_by, parse_rules
from rayreid.selection.registry import STRATEGIES, Basis
from rayreid.stages import adapt, evaluate, select
from rayreid.stages.training import initial_weights
from rayreid.storage.artifacts import Artifact


def check(
    experiments: Iterable[Experiment], plans: Mapping[str, Mapping[str, Artifact]], screen: Screen | None = None
) -> None:
    """Refuse experiments that would fail only after a part of them has run.

    Args:
        experiments: The experiments.
        plans: Their artifacts, by label and role.
        screen: Shows which stores cannot be compared with their files (default: a screen for the terminal).

    Raises:
        UserError: One of these was found: a missing or empty dataset, a dataset that changed since it was ingested, a
            target that lacks a split, a pool with test images, an unknown backbone or stem, an image size that is not
            a multiple of the patch, weights of another architecture, an empty subset, a batch that cannot be filled or
            divided among workers and micro-batches, an unreadable file list, a proxy without pre-training or with two
            definitions, a method that the backbone does not support, checkpointed activations of a network that is not
            a ViT, a search without faiss, a feature after the BNNeck of a model without one, a probe that would find
            nothing, a score target without images to compare a pool with, fewer target images than entries in a
            neighbour list, or a validation without query and gallery.
    """
    experiments = list(experiments)
    check_settings(experiments, plans)
    screen = screen or Screen()
    check_sources(experiments, plans, lambda line: screen.say(escape(line)))


def check_settings(
    experiments: Iterable[Experiment], plans: Mapping[str, Mapping[str, Artifact]], weights: bool = True
) -> None:
    """Refuse what can be refused without looking at any dataset; see `check`.

    Args:
        experiments, plans: See `check`.
        weights: Whether to look into the weights that the experiments start from, which downloads those of timm.
    """
    experiments = list(experiments)
    for backbone in {str(b): b for e in experiments for b in (e.backbone, e.proxy.backbone)}.values():
        initial_weights.check(backbone if weights else backbone.model_copy(update={"weights": None}))
    for e in experiments:
        _check_dealing(e, 1 if e.resources.workers == "auto" else e.resources.workers)
        if weights and needs_source(e):
            check_proxies(e)
        _check_checkpointing(e)
        _check_search(e)
        for key, (backbone, config) in _pretrainings(e).items():
            _check_method(key, backbone, config)
            _check_local_size(key, backbone, config)
        for number, one in enumerate(e.select.rankings if e.selects else ()):
            if STRATEGIES[one.strategy].basis is Basis.LIST:
                _check_batch("pretrain", e.pretrain, len(read_list(select.list_file(one))), "select.list")
            if STRATEGIES[one.strategy].basis is Basis.MEASURES:
                place = "select" if one is e.select else f"select.parts.{number}"
                parse_rules(one.rules, place)
                parse_by(one.by, f"{place}.by")
    for graph in plans.values():
        if "metrics" in graph:
            evaluate.check_feature(graph["metrics"])


def check_workers(experiments: Iterable[Experiment]) -> None:
    """Refuse batches that cannot be divided among the workers, once Ray can resolve `resources.workers: auto`.

    Raises:
        UserError: A batch cannot be divided, or the workers do not fit the cluster.
    """
    for e in experiments:
        _check_dealing(e, training_share(e.resources).workers)


def check_sources(
    experiments: Iterable[Experiment],
    plans: Mapping[str, Mapping[str, Artifact]],
    say: Callable[[str], None] | None = None,
) -> None:
    """Check what depends on the datasets that the experiments use: on their stores, or else on their listings.

    Args:
        experiments: The experiments, at least one.
        plans: Their artifacts, by label and role.
        say: Prints a line about a store that cannot be compared with its files. None: compare none.

    Raises:
        UserError: See `check`.
    """
    experiments = list(experiments)
    root = next(iter(next(iter(plans.values())).values())).root
    datasets = Datasets(root, max(map(_images_needed, experiments)), say)
    for e in experiments:
        target = datasets.look("target", e.target)
        if e.adapt.method == "uda" and e.source is not None:
            _check_finetuning("finetune", e.finetune, "source", datasets.look("source", e.source))
        elif e.adapt.method == "none":
            _check_finetuning("finetune", e.finetune, "target", target)
        if e.adapt.method != "none":
            adapt.check_images(e.adapt, (target.images or {})["train"])
        for role, source in _proxy_targets(e).items():
            _check_finetuning("proxy.finetune", e.proxy.finetune, role, datasets.look(role, source))
        for role, source in _compared_targets(e).items():
            _check_comparison(role, source, e.pool, datasets.look(role, source))
        _check_probe(e, target)
        if e.pretrain.method != "none":
            _check_images(e, datasets.look("pool", e.pool))


def _pretrainings(e: Experiment) -> dict[str, tuple[Backbone, Pretrain]]:
    """Return the backbones and sections of all pre-trainings, by key."""
    own = {} if e.pretrain.method == "none" else {"pretrain": (e.backbone, e.pretrain)}
    return own | ({"proxy.pretrain": (e.proxy.backbone, e.proxy.pretrain)} if pretrains_proxy(e) else {})


def _finetunings(e: Experiment) -> dict[str, Finetune]:
    """Return the sections of all fine-tunings, by key."""
    own = {} if e.adapt.method == "usl" else {"finetune": e.finetune}
    return {**own, **({"proxy.finetune": e.proxy.finetune} if finetunes_proxies(e) else {})}


def _proxy_targets(e: Experiment) -> dict[str, Source]:
    """Return the datasets that proxies are fine-tuned on, by their names in messages."""
    return (_score_targets(e) or {"target": e.target}) if finetunes_proxies(e) else {}


def _compared_targets(e: Experiment) -> dict[str, Source]:
    """Return the datasets in `score.targets` that a strategy compares the pool with, by their names in messages."""
    compares = e.selects and any(STRATEGIES[one.strategy].targets for one in e.select.rankings)
    return _score_targets(e) if compares else {}


def _score_targets(e: Experiment) -> dict[str, Source]:
    """Return the datasets in `score.targets`, by their names in messages."""
    return {f"score target {one.label}": one.source for one in e.score.targets if one.source is not None}


def _check_search(e: Experiment) -> None:
    """Refuse a search that needs faiss where it is not installed."""
    used = e.select.rankings if e.selects else ()
    alone = e.select.strategy != "combine"  # a combination looks for its largest cluster
    clusters = any(
        STRATEGIES[one.strategy].basis is Basis.FEATURES for one in used if not alone or one.strategy == "cluster"
    )
    if clusters or (e.adapt.method != "none" and e.adapt.search != "torch"):
        require_faiss()


def _check_finetuning(key: str, config: Finetune, role: str, target: Contents) -> None:
    """Refuse a batch of more identities or images than there are, and validation without query and gallery."""
    if not target.identities:
        own = "; name a θt of your own (proxy), or leave out the strategies that need one" if "score" in role else ""
        raise UserError(f"{key}: the {role} has no labelled image of split 'train' to fine-tune on{own}")
    if config.by_identity and config.identities > target.identities:
        raise UserError(
            f"{key}.identities={config.identities}, but the {role}'s split train has only {target.identities} "
            "identities; lower it"
        )
    images = target.images or {}
    if not config.by_identity and config.batch_size > images.get("train", 0):
        raise UserError(
            f"{key}.identities={config.identities} × {key}.instances={config.instances} are more than the "
            f"{images.get('train', 0)} images of the {role}'s split train; lower one"
        )
    if config.evaluate_every and not (images.get("query") and images.get("gallery")):
        raise UserError(
            f"{key}.evaluate_every={config.evaluate_every}, but the {role} has no query and gallery to look at; set it "
            "to 0"
        )


def _check_comparison(role: str, source: Source, pool: Source, target: Contents) -> None:
    """Refuse a dataset with which a pool cannot be compared, or that is the pool."""
    if location(source) == location(pool) and source.dataset == pool.dataset and source.options == pool.options:
        raise UserError(
            f"{role}: dataset {source.dataset} is the pool itself: every image would be most similar to itself"
        )
    images = target.images or {}
    if not images.get("train") and not images.get("pool"):
        raise UserError(
            f"{role}: dataset {source.dataset} has neither training images nor images without labels"
            f"{target.passed_over}; select.strategy=target_similarity compares the pool with one or the other"
        )


def _check_probe(e: Experiment, target: Contents) -> None:
    """Refuse a probe that would find nothing."""
    if not target.findable and any(config.probed for _, config in _pretrainings(e).values()):
        raise UserError(f"target: dataset {e.target.dataset}: {NOTHING_TO_FIND}")


def _images_needed(e: Experiment) -> int:
    """Return the number of images with which a pool passes every check of `_check_images`."""
    return max(e.select.pool_size(e.pretrain.batch_size), e.proxy.pretrain.batch_size if pretrains_proxy(e) else 0)


def _check_images(e: Experiment, pool: Contents) -> None:
    """Refuse a subset or a batch of more images than there are."""
    if pool.images is None:
        return
    stored = sum(pool.images.values())
    chosen, share = e.select.size(stored), e.select.setting
    if chosen > stored:
        raise UserError(f"{share}, but the pool has only {stored} images; lower it")
    if not chosen:
        raise UserError(f"{share} of the pool's {stored} images selects none; raise it")
    _check_batch("pretrain", e.pretrain, chosen, f"{share} of the pool's {stored}")
    _check_warmup("pretrain", e.backbone, e.pretrain, stored)
    if pretrains_proxy(e):
        _check_batch("proxy.pretrain", e.proxy.pretrain, stored, "the pool")
        _check_warmup("proxy.pretrain", e.proxy.backbone, e.proxy.pretrain, stored)


def _check_batch(key: str, config: Pretrain, images: int, source: str) -> None:
    if config.batch_size > images:
        raise UserError(
            f"{key}.batch_size={config.batch_size} is more than the {images} images to train on ({source}); lower it"
        )


def _check_warmup(key: str, backbone: Backbone, config: Pretrain, stored: int) -> None:
    """Refuse a warm-up that is longer than a length in steps, which the size of the pool decides."""
    try:
        config.recipe(backbone, stored // config.batch_size)
    except UserError as error:
        raise UserError(f"{key.removesuffix('pretrain')}{error}") from None


def _check_method(key: str, backbone: Backbone, config: Pretrain) -> None:
    """Refuse a method that does not support this backbone, or a queue that is smaller than a batch."""
    try:
        queue = config.recipe(backbone).queue
    except UserError as error:
        raise UserError(f"{key.removesuffix('pretrain')}{error}") from None
    if queue and queue < config.batch_size:
        raise UserError(f"{key}.queue={queue} does not hold {key}.batch_size={config.batch_size} keys; raise it")


def _check_checkpointing(e: Experiment) -> None:
    """Activations to be checkpointed of a network that is no ViT."""
    trained: dict[str, tuple[Backbone, Pretrain | Finetune | Adapt]] = dict(_pretrainings(e))
    for key, finetuning in _finetunings(e).items():
        trained[key] = (e.proxy.backbone if key.startswith("proxy") else e.backbone, finetuning)
    if e.adapt.method != "none":
        trained["adapt"] = (e.backbone, e.adapt)
    for key, (backbone, config) in trained.items():
        if config.checkpoint_activations and not backbone.name.startswith("vit"):
            raise UserError(
                f"{key}.checkpoint_activations=true is for vit_* only, not {backbone.name}; set it to false"
            )


def _check_local_size(key: str, backbone: Backbone, config: Pretrain) -> None:
    """Refuse local crops that are not whole patches."""
    sizes = config.crop_sizes(backbone.img_size, backbone.patch)[1]
    if backbone.name.startswith("vit") and any(side % backbone.patch for side in sizes):
        raise UserError(f"{key}.local_size={list(config.local_size)}: give multiples of the patch, {backbone.patch}")


def _check_dealing(e: Experiment, workers: int) -> None:
    """Refuse batches that cannot be divided evenly among the workers and their micro-batches."""
    found = f" ({workers})" if e.resources.workers == "auto" and workers > 1 else ""
    dealt = f"cannot be dealt evenly to resources.workers={e.resources.workers}{found}"
    for key, (_, config) in _pretrainings(e).items():
        parts = workers * config.accumulate
        if config.batch_size % parts:
            raise UserError(
                f"{key}.batch_size={config.batch_size} {dealt} × {key}.accumulate={config.accumulate}; make it a "
                f"multiple of {parts}"
            )
    for key, finetuning in _finetunings(e).items():
        if finetuning.by_identity and finetuning.identities % workers:
            raise UserError(f"{key}.identities={finetuning.identities} {dealt}; make it a multiple of {workers}")
        if finetuning.batch_size % workers:
            raise UserError(
                f"{key}.identities={finetuning.identities} × {key}.instances={finetuning.instances} {dealt}; make them "
                f"a multiple of {workers}"
            )
    if e.adapt.method != "none" and e.adapt.clusters % workers:
        raise UserError(f"adapt.clusters={e.adapt.clusters} {dealt}; make it a multiple of {workers}")
