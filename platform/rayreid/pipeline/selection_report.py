"""Comparison of the images that strategies or proxies choose from one pool: figures in MLflow, and an HTML page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape

from rayreid.config import Experiment, Select
from rayreid.config.loading import change, rows
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.comparison_figures import agreement_matrices, keep_rates
from rayreid.evaluation.figures import group_colours, image_sheet, score_histogram
from rayreid.evaluation.page import Page
from rayreid.execution.connection import connect
from rayreid.execution.production import produce
from rayreid.execution.shared_storage import check_storage
from rayreid.files import write_atomically
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import folder_of
from rayreid.pipeline.experiment_runner import Session, experiment_run, open_session
from rayreid.pipeline.graph import plan
from rayreid.pipeline.ingestion import make_stores
from rayreid.pipeline.meaning_table import add_meanings
from rayreid.pipeline.needed_artifacts import needed, record_needed
from rayreid.pipeline.pool_map_page import FILE, MOST_IMAGES, NO_FEATURES, add_link, check_map, write_map
from rayreid.pipeline.preflight import check
from rayreid.pipeline.selection_graph import ranked_of
from rayreid.pipeline.tags import tags_of
from rayreid.selection.meaning import Diagnosis
from rayreid.selection.overlap import jaccard, rank_correlation
from rayreid.selection.provenance import Provenance, provenance_of
from rayreid.selection.registry import STRATEGIES, Basis
from rayreid.selection.strategies import cut
from rayreid.stages import select
from rayreid.stages.score import extremes
from rayreid.stages.score_meaning import figures_of
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.names import slug
from rayreid.tracking.run import Run

COMPARED = tuple(name for name, strategy in STRATEGIES.items() if strategy.basis not in (Basis.LIST, Basis.PARTS))
"""Strategies compared by default: all that need neither a file list nor parts."""
FRACTIONS = (0.1, 0.25, 0.5, 0.75)
_SHOWN = 36
"""Number of images in a sheet on the page: three rows of twelve."""
_COLUMNS = 12
_DIGITS = 12
"""Number of digits shown of a checksum, enough to tell it from others."""


@dataclass(frozen=True)
class Selection:
    """One way of choosing from the pool.

    Attributes:
        label: Name on the page.
        strategy: Name of the strategy.
        artifact: The subset.
        manifest: Manifest of the subset.
        priority: Priority by index row of the pool, float64 (N,), NaN: never selected.
        figures: What is known of the order of the priorities; None for strategies that neither score nor rank, and for
            artifacts of earlier versions.
    """

    label: str
    strategy: str
    artifact: Artifact
    manifest: Mapping[str, Any]
    priority: np.ndarray
    figures: Diagnosis | None = None

    @property
    def cut(self) -> float:
        """The lowest priority in the subset."""
        return float(self.manifest["cut"])

    @property
    def unranked(self) -> int:
        """Number of images without a priority."""
        return int(np.isnan(self.priority).sum())


def compare(experiment: Experiment, strategies: Sequence[str] = COMPARED, map_images: int | None = MOST_IMAGES) -> Path:
    """Compare strategies on the file's pool, and the selections of its rows; missing scores and subsets are made first.

    Rows may also differ in `proxy` or `score.targets`; the comparison is then one of proxies.

    Args:
        experiment: The experiment.
        strategies: Strategies to compare, in addition to those of the rows.
        map_images: Maximum number of images on the map of the pool; None for no map.

    Returns:
        The path of the page.

    Raises:
        UserError: No row selects a part of the pool, the rows have different pools, making a subset fails, or the map
            needs a package that is missing.
    """
    wanted = {label: row for label, row in variants(experiment, strategies).items() if row.selects}
    root = output_root()
    plans = {label: plan(row, root) for label, row in wanted.items()}
    if not plans:
        raise UserError(f"experiment {experiment.name!r} selects no part of its pool: nothing to compare")
    if len({graph["pool"].id for graph in plans.values()}) > 1:
        raise UserError(f"experiment {experiment.name!r}: selections from different pools cannot be compared")
    check(wanted.values(), plans)
    if map_images is not None and _features(plans):
        check_map()
    session = open_session(experiment)
    path = folder_of(root, experiment) / "selections.html"
    with connect(), experiment_run(session, experiment) as run:
        check_storage()
        subsets = [graph["subset"] for graph in plans.values()]
        record_needed(path.parent, needed(experiment, plans.values(), root))
        make_stores(subsets, wanted, plans, run, session.screen, tags_of(experiment))
        for label, graph in plans.items():
            produce(graph["subset"], run, session.screen, {**tags_of(wanted[label]), "row": label})
        store = ImageStore(next(iter(plans.values()))["pool"].path)
        found = [_selection(label, wanted[label], graph, store) for label, graph in plans.items()]
        page = _page(experiment, store, found, provenance_of(experiment.pool), run)
        if map_images is not None:
            _add_map(page, path.with_name(FILE), experiment, store, found, _features(plans), map_images, run, session)
        write_atomically(path, page.html())
        run.file(path)
    session.screen.say(escape(str(path)))
    session.tracker.check_delivered()
    return path


def variants(experiment: Experiment, strategies: Iterable[str]) -> dict[str, Experiment]:
    """Return the file with each strategy, and its rows; rows with the same ranking are compared only once."""
    alone = experiment.alone
    whole = {"select.fraction": 0.5} if alone.select.whole else {}
    table = {name: change(alone, {"select.strategy": name, **whole}, "--strategy") for name in strategies}
    if experiment.compares:
        table |= {label: row for label, row in rows(experiment).items() if label not in table}
    distinct: dict[str, tuple[str, Experiment]] = {}
    for label, row in table.items():
        ranks_by = row.select.model_copy(update={"fraction": 0.5, "count": None})
        seed = row.seed if STRATEGIES[row.select.strategy].seeded else 0
        key = f"{ranks_by} {row.proxy} {row.score.targets} {row.pool} {row.target} {seed}"
        distinct.setdefault(key, (label, row))
    return dict(distinct.values())


def _selection(label: str, e: Experiment, graph: Mapping[str, Artifact], store: ImageStore) -> Selection:
    ranked = ranked_of(graph)
    priority = select.ranking(e.select, e.seed, store, ranked.path if ranked else None)
    manifest = select.read_manifest(graph["subset"].path)
    figures = figures_of(ranked) if ranked else None
    return Selection(label, e.select.strategy, graph["subset"], manifest, priority, figures)


def _page(
    experiment: Experiment, store: ImageStore, found: Sequence[Selection], provenance: Provenance | None, run: Run
) -> Page:
    page = Page(f"{experiment.name}: which images each strategy chooses")
    page.text(
        "A strategy gives every image of the pool a priority, and a subset is the images of highest priority. "
        "Subsets of one strategy are nested: a smaller one is a part of every larger one."
    )
    _add_facts(page, experiment, store, found, provenance)
    ranked = [one for one in found if STRATEGIES[one.strategy].ranking]
    separations = {one.label: provenance.judge(store.keys, one.priority) if provenance else None for one in ranked}
    add_meanings(page, {one.label: one.figures for one in ranked}, separations, run)
    groups = provenance.groups(store.keys) if provenance else {}
    _add_overlap(page, store, found, run)
    if provenance:
        _add_origins(page, store, found, provenance, groups, run)
    for one in found:
        page.heading(one.label)
        _add_pictures(page, store, one, groups, run)
    return page


def _features(plans: Mapping[str, Mapping[str, Artifact]]) -> Artifact | None:
    """Return the features of the pool that the first of the selections with features uses; None if there are none."""
    return next((graph["features"] for graph in plans.values() if "features" in graph), None)


def _add_map(
    page: Page,
    path: Path,
    e: Experiment,
    store: ImageStore,
    found: Sequence[Selection],
    features: Artifact | None,
    images: int,
    run: Run,
    session: Session,
) -> None:
    """Write the map of the pool and add a link to it, or say why there is none."""
    page.heading("Map of the pool")
    if features is None:
        page.text(NO_FEATURES)
        return
    session.screen.say(f"placing {min(images, len(store)):,} images of the pool on a map")
    priorities = {one.label: one.priority for one in found}
    kept = {one.label: cut(store.keys, one.priority, one.manifest["count"]) for one in found}
    title = f"{e.name}: a map of the pool"
    write_map(path, title, store, features, priorities, kept, provenance_of(e.pool), images, e.seed)
    run.file(path)
    add_link(page, path)


def _add_facts(
    page: Page, e: Experiment, store: ImageStore, found: Sequence[Selection], provenance: Provenance | None
) -> None:
    """Add tables of the pool, the subsets and the proxies."""
    page.heading("What was compared")
    origins = f"known; the target's own domain is {provenance.relevant!r}" if provenance else "not known"
    page.table(
        ["pool", ""],
        [
            ["dataset", " ".join(filter(None, [e.pool.dataset, e.pool.root]))],
            ["images", f"{len(store):,}"],
            ["fingerprint", store.fingerprint[:_DIGITS]],
            ["origins of the images", origins],
            ["target", " ".join(filter(None, [e.target.dataset, e.target.root]))],
        ],
        words=True,
    )
    page.table(
        ["selection", "strategy", "images", "of the pool", "lowest priority kept", "without priority", "subset"],
        [
            [
                one.label,
                one.strategy,
                f"{one.manifest['count']:,}",
                f"{one.manifest['count'] / len(store):.1%}",
                f"{one.cut:.4g}",
                f"{one.unranked:,}",
                str(one.artifact),
            ]
            for one in found
        ],
    )
    proxies = [
        [one.label, role, proxy["artifact"], proxy["weights"][:_DIGITS]]
        for one in found
        for role, proxy in one.manifest["proxies"].items()
    ]
    if proxies:
        page.table(["selection", "its proxies", "made by", "checksum of the weights"], proxies, words=True)


def _add_overlap(page: Page, store: ImageStore, found: Sequence[Selection], run: Run) -> None:
    """Add rank correlations, and Jaccard indices of the subsets at several fractions."""
    sizes = _sizes(store)
    subsets = {f: [cut(store.keys, one.priority, size) for one in found] for f, size in sizes.items()}
    matrices = {"rank correlation": _matrix([one.priority for one in found], rank_correlation)}
    matrices |= {f"Jaccard at {fraction:.0%}": _matrix(chosen, jaccard) for fraction, chosen in subsets.items()}
    page.heading("Agreement")
    page.text(
        "Spearman's rank correlation of the priorities, and images in both subsets over images in either. "
        "Two unrelated choices of a fraction f of the pool have a Jaccard index of about f / (2 − f)."
    )
    _show(page, run, agreement_matrices(matrices, [one.label for one in found]), "agreement", "Agreement of selections")
    for i, first in enumerate(found):
        for j in range(i + 1, len(found)):
            value = matrices["rank correlation"][i, j]
            if np.isfinite(value):
                run.metrics({f"rank_correlation.{slug(first.label)}.{slug(found[j].label)}": float(value)})


def _add_origins(
    page: Page,
    store: ImageStore,
    found: Sequence[Selection],
    provenance: Provenance,
    groups: Mapping[str, np.ndarray],
    run: Run,
) -> None:
    """Add AUC and keep rates by origin."""
    page.heading("Where the images come from")
    page.text(
        f"The pool's origins are known; they were used for judging only. The target's own domain is "
        f"{provenance.relevant!r}. AUC of an origin: how often an image of it ranks above one of another (0.5: chance)."
    )
    separation = {one.label: provenance.separation(store.keys, one.priority) for one in found}
    page.table(
        ["AUC", *groups],
        [
            [label, *(f"{aucs[name]:.3f}" if name in aucs else "–" for name in groups)]
            for label, aucs in separation.items()
        ],
    )
    for label, aucs in separation.items():
        run.metrics({f"auc.{slug(label)}.{slug(name)}": value for name, value in aucs.items()})
    sizes = _sizes(store)
    rates = {one.label: _rates(store, one, groups, sizes.values()) for one in found}
    for fraction_number, fraction in enumerate(sizes):
        page.table(
            [f"kept at {fraction:.0%}", *groups],
            [[label, *(f"{shares[name][fraction_number]:.1%}" for name in groups)] for label, shares in rates.items()],
        )
    _show(page, run, keep_rates(list(sizes), rates), "keep_rates", "Share of each origin's images that is kept")


def _rates(
    store: ImageStore, one: Selection, groups: Mapping[str, np.ndarray], sizes: Iterable[int]
) -> dict[str, list[float]]:
    """Return the share of each origin's images that subsets of several sizes keep."""
    rates: dict[str, list[float]] = {name: [] for name in groups}
    for size in sizes:
        kept = np.zeros(len(store), bool)
        kept[cut(store.keys, one.priority, size)] = True
        for name, members in groups.items():
            rates[name].append(float(kept[members].mean()))
    return rates


def _add_pictures(page: Page, store: ImageStore, one: Selection, groups: Mapping[str, np.ndarray], run: Run) -> None:
    """Add a histogram with the cut, and sheets of the highest, median and lowest images, framed by origin if known."""
    colours = dict(zip(groups, group_colours(len(groups)), strict=True))
    ranked = np.isfinite(one.priority)
    label = STRATEGIES[one.strategy].label
    if label:
        shares = {name: members[ranked] for name, members in groups.items()}
        histogram = score_histogram(one.priority[ranked], one.cut, shares, label)
        _show(page, run, histogram, f"{slug(one.label)}_histogram", f"{one.label}: distribution, the cut marked")
    if colours:
        page.key(colours)
    for part, shown in extremes(one.priority, _SHOWN).items():
        frames = [next(colours[name] for name, members in groups.items() if members[row]) for row in shown]
        sheet = image_sheet(
            [store.image(row) for row in shown],
            [f"{value:.3f}" for value in one.priority[shown]],
            columns=_COLUMNS,
            frames=frames if colours else None,
        )
        _show(page, run, sheet, f"{slug(one.label)}_{part}", f"{one.label}: {part} priorities", photographs=True)


def _show(page: Page, run: Run, figure: Figure, name: str, caption: str, photographs: bool = False) -> None:
    page.figure(figure, caption, photographs)
    run.figure(figure, f"figures/selections/{name}.png")


def _matrix(items: Sequence[np.ndarray], measure: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    return np.array([[measure(first, second) for second in items] for first in items])


def _sizes(store: ImageStore) -> dict[float, int]:
    """Return the sizes of the subsets to compare, by fraction; without empty ones."""
    sizes = {fraction: Select(fraction=fraction).size(len(store)) for fraction in FRACTIONS}
    return {fraction: size for fraction, size in sizes.items() if size}
