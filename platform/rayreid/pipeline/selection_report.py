"""Comparison of the images that strategies or proxies choose from one pool: figures in MLflow, and an HTML page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape

from rayreid.config import Experiment
from rayreid.config.loading import change, rows
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.canvas import group_colours
from rayreid.evaluation.comparison_figures import agreement_matrices
from rayreid.evaluation.image_sheets import image_sheet
from rayreid.evaluation.page import Page
from rayreid.evaluation.score_figures import score_histogram
from rayreid.execution.connection import connect
from rayreid.execution.production import produce
from rayreid.execution.shared_storage import check_storage
from rayreid.files import write_atomically
from rayreid.paths import output_root
from rayreid.pipeline.compared_facts import add_facts
from rayreid.pipeline.compared_selection import Selection, selection_of, sizes_of
from rayreid.pipeline.experiment_folder import folder_of, path_of
from rayreid.pipeline.experiment_runner import experiment_run, open_session
from rayreid.pipeline.graph import plan
from rayreid.pipeline.ingestion import make_stores
from rayreid.pipeline.judgement_table import add_judgements
from rayreid.pipeline.judging import Judged, plan_judging
from rayreid.pipeline.meaning_table import add_meanings
from rayreid.pipeline.measure_figures import add_measures, known_measures
from rayreid.pipeline.needed_artifacts import needed, record_needed
from rayreid.pipeline.origin_tables import add_origins
from rayreid.pipeline.pool_map_page import FILE, MOST_IMAGES, NO_FEATURES, add_link, check_map, write_map
from rayreid.pipeline.preflight import check
from rayreid.pipeline.selection_export import planned_export
from rayreid.pipeline.short_trainings import Trained, plan_short_trainings
from rayreid.pipeline.shown_figures import show
from rayreid.pipeline.tags import tags_of
from rayreid.selection.overlap import jaccard, rank_correlation
from rayreid.selection.provenance import Provenance, provenance_of
from rayreid.selection.registry import STRATEGIES, Basis
from rayreid.selection.strategies import cut
from rayreid.stages import places
from rayreid.stages.score import extremes
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.names import slug
from rayreid.tracking.run import Run

COMPARED = tuple(name for name, strategy in STRATEGIES.items() if strategy.basis not in (Basis.LIST, Basis.PARTS))
"""Strategies compared by default: all that need neither a file list nor parts."""
_SHOWN = 36
"""Number of images in a sheet on the page: three rows of twelve."""
_COLUMNS = 12


def compare(
    experiment: Experiment,
    strategies: Sequence[str] = COMPARED,
    map_images: int | None = MOST_IMAGES,
    export: str | None = None,
    export_to: str | None = None,
    proxy_steps: int | None = None,
) -> Path:
    """Compare strategies on the file's pool, and the selections of its rows; missing scores and subsets are made first.

    Rows may also differ in `proxy` or `score.targets`; the comparison is then one of proxies.

    Args:
        experiment: The experiment.
        strategies: Strategies to compare, in addition to those of the rows.
        map_images: Maximum number of images on the map of the pool; None for no map.
        export: Format in which to hand on the kept images of each selection (see `Export`); None: not at all.
        export_to: Folder for these (default: `kept-<format>` beside the page).
        proxy_steps: Optimizer steps of a short pre-training on each selection at each fraction; None: none.

    Returns:
        The path of the page.

    Raises:
        UserError: No row selects a part of the pool, the rows have different pools, making a subset fails, the map
            needs a package that is missing, or the export is refused.
    """
    wanted = variants(experiment, strategies)
    root = output_root()
    exported = planned_export(export, export_to, path_of(root, experiment))
    plans = {label: plan(row, root) for label, row in wanted.items()}
    if not plans:
        raise UserError(f"experiment {experiment.name!r} selects no part of its pool: nothing to compare")
    if len({graph["pool"].id for graph in plans.values()}) > 1:
        raise UserError(f"experiment {experiment.name!r}: selections from different pools cannot be compared")
    if exported:
        exported.check({label: graph["subset"] for label, graph in plans.items()}, experiment.pool)
    short = plan_short_trainings(wanted, proxy_steps, root) if proxy_steps is not None else None
    check(wanted.values(), plans)
    judging = plan_judging(wanted, plans)
    placed = None
    if map_images is not None and judging:
        check_map()
        placed = places.plan(judging.graph["pool"], judging.graph["features"], map_images, experiment.seed)
    session, tags = open_session(experiment), tags_of(experiment)
    path = folder_of(root, experiment) / "selections.html"
    with connect(), experiment_run(session, experiment) as run:
        check_storage()
        planned = [*plans.values(), *([judging.graph] if judging else []), *([short.graph] if short else [])]
        planned += [{"places": placed}] if placed else []
        record_needed(path.parent, needed(experiment, planned, root))
        subsets = [graph["subset"] for graph in plans.values()]
        made = [*subsets, *(judging.features if judging else [])]
        make_stores(made, wanted, plans, run, session.screen, tags)
        for label, graph in plans.items():
            produce(graph["subset"], run, session.screen, {**tags_of(wanted[label]), "row": label})
        store = ImageStore(next(iter(plans.values()))["pool"].path)
        found = [selection_of(label, wanted[label], graph, store) for label, graph in plans.items()]
        judged = judging.judge(store, found, run, session.screen, tags) if judging else None
        trained = short.run(store, run, session.screen, tags) if short else None
        quality = next((graph["quality"].path for graph in plans.values() if "quality" in graph), None)
        provenance = provenance_of(experiment.pool)
        page = _page(experiment, store, found, provenance, run, judged, trained, quality)
        if map_images is not None:
            if placed:
                produce(placed, run, session.screen, tags)
            _add_map(page, path.with_name(FILE), experiment, store, found, placed, run)
        write_atomically(path, page.html())
        run.file(path)
        if exported:
            session.screen.say(escape(exported.write(store, found, experiment.pool, provenance)))
    session.screen.say(escape(str(path)))
    session.tracker.check_delivered()
    return path


def variants(experiment: Experiment, strategies: Iterable[str]) -> dict[str, Experiment]:
    """Return the file with each strategy, and its rows; rows with the same ranking are compared only once.

    Rows that select no part of the pool are left out first: such a row must not stand for one with the same ranking.
    """
    table = {name: _selecting(experiment.alone, name) for name in strategies}
    if experiment.compares:
        table |= {label: row for label, row in rows(experiment).items() if label not in table}
    distinct: dict[str, tuple[str, Experiment]] = {}
    for label, row in table.items():
        if not row.selects:
            continue
        ranks_by = row.select.model_copy(update={"fraction": 0.5, "count": None})
        seed = row.seed if any(STRATEGIES[one.strategy].seeded for one in row.select.rankings) else 0
        key = f"{ranks_by} {row.proxy} {row.score.targets} {row.pool} {row.target} {seed}"
        distinct.setdefault(key, (label, row))
    return dict(distinct.values())


def _selecting(experiment: Experiment, strategy: str) -> Experiment:
    """Return the experiment with another strategy, at one half if it would keep the whole pool."""
    row = change(experiment, {"select.strategy": strategy}, "--strategy")
    return change(row, {"select.fraction": 0.5}, "--strategy") if row.select.whole else row


def _page(
    experiment: Experiment,
    store: ImageStore,
    found: Sequence[Selection],
    provenance: Provenance | None,
    run: Run,
    judged: Judged | None = None,
    trained: Trained | None = None,
    quality: Path | None = None,
) -> Page:
    page = Page(f"{experiment.name}: which images each strategy chooses")
    page.text(
        "A strategy gives every image of the pool a priority, and a subset is the images of highest priority. "
        "Subsets of one strategy are nested: a smaller one is a part of every larger one."
    )
    add_facts(page, experiment, store, found, provenance)
    ranked = [one for one in found if STRATEGIES[one.strategy].diagnosed]
    separations = {one.label: provenance.judge(store.keys, one.priority) if provenance else None for one in ranked}
    add_meanings(page, {one.label: one.figures for one in ranked}, separations, run)
    groups = provenance.groups(store.keys) if provenance else {}
    add_judgements(page, store, found, groups, judged, run, trained)
    add_measures(page, store, found, known_measures(store, quality), run)
    _add_overlap(page, store, found, run)
    if provenance:
        add_origins(page, store, found, provenance, groups, run)
    for one in found:
        page.heading(one.label)
        _add_pictures(page, store, one, groups, run)
    return page


def _add_map(
    page: Page,
    path: Path,
    e: Experiment,
    store: ImageStore,
    found: Sequence[Selection],
    placed: Artifact | None,
    run: Run,
) -> None:
    """Write the map of the pool and add a link to it, or say why there is none."""
    page.heading("Map of the pool")
    if placed is None:
        page.text(NO_FEATURES)
        return
    priorities = {one.label: one.priority for one in found}
    kept = {one.label: cut(store.keys, one.priority, one.manifest["count"]) for one in found}
    title = f"{e.name}: a map of the pool"
    source = str(placed.inputs["features"].inputs["source"])
    write_map(path, title, store, places.read_places(placed.path), source, priorities, kept, provenance_of(e.pool))
    run.file(path)
    add_link(page, path)


def _add_overlap(page: Page, store: ImageStore, found: Sequence[Selection], run: Run) -> None:
    """Add rank correlations, and Jaccard indices of the subsets at several fractions."""
    sizes = sizes_of(store)
    subsets = {f: [cut(store.keys, one.priority, size) for one in found] for f, size in sizes.items()}
    matrices = {"rank correlation": _matrix([one.priority for one in found], rank_correlation)}
    matrices |= {f"Jaccard at {fraction:.0%}": _matrix(chosen, jaccard) for fraction, chosen in subsets.items()}
    page.heading("Agreement")
    page.text(
        "Spearman's rank correlation of the priorities, and images in both subsets over images in either. "
        "Two unrelated choices of a fraction f of the pool have a Jaccard index of about f / (2 − f)."
    )
    show(page, run, agreement_matrices(matrices, [one.label for one in found]), "agreement", "Agreement of selections")
    for i, first in enumerate(found):
        for j in range(i + 1, len(found)):
            value = matrices["rank correlation"][i, j]
            if np.isfinite(value):
                run.metrics({f"rank_correlation.{slug(first.label)}.{slug(found[j].label)}": float(value)})


def _add_pictures(page: Page, store: ImageStore, one: Selection, groups: Mapping[str, np.ndarray], run: Run) -> None:
    """Add a histogram with the cut, and sheets of the highest, median and lowest images, framed by origin if known."""
    colours = dict(zip(groups, group_colours(len(groups)), strict=True))
    ranked = np.isfinite(one.priority)
    label = STRATEGIES[one.strategy].label
    if label:
        shares = {name: members[ranked] for name, members in groups.items()}
        histogram = score_histogram(one.priority[ranked], one.cut, shares, label)
        show(page, run, histogram, f"{slug(one.label)}_histogram", f"{one.label}: distribution, the cut marked")
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
        show(page, run, sheet, f"{slug(one.label)}_{part}", f"{one.label}: {part} priorities", photographs=True)


def _matrix(items: Sequence[np.ndarray], measure: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    return np.array([[measure(first, second) for second in items] for first in items])
