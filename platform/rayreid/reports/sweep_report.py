"""The report of a sweep on one page: curves, stems, costs and published results, made from MLflow alone."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.markup import escape

from rayreid.config.loading import load_experiment
from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.evaluation.metrics import percent
from rayreid.evaluation.outcomes import Curve, Group, curves, grouped, names_of, pareto
from rayreid.evaluation.page import Page
from rayreid.evaluation.published import CLAIMED, Published, incomparable, published_for
from rayreid.evaluation.sweep_figures import cost_figure, fraction_curves
from rayreid.files import make_folder, write_atomically
from rayreid.models.stems import STEMS
from rayreid.paths import output_root
from rayreid.pipeline.budget import NO_BUDGET, budget_note
from rayreid.pipeline.experiment_folder import digest_of
from rayreid.reports.trial_results import Trial, latest, selection_costs, trials_of
from rayreid.tracking.history import History, Record
from rayreid.tracking.run import Run
from rayreid.tracking.store import tracking_uri
from rayreid.tracking.tracker import Tracker

PAGE = "report.html"
_MOST_CURVES = 12
_SETTING_METRICS = ("mAP", "rank1", "mINP")
_TASKS = {"none": "supervised", "usl": "usl", "uda": "uda"}


def report(sweep: str, overrides: Sequence[str] = ()) -> Path:
    """Write the report of a sweep, or of an experiment with rows: a page and PNGs in the output root and in MLflow.

    Args:
        sweep: An experiment file, or the name of an experiment. A name selects its newest run with results; a file
            selects the run of the file as it stands.
        overrides: Changes to the file, as when it was run.

    Returns:
        The path of the page.

    Raises:
        UserError: The run does not exist, or none of its trials has finished.
    """
    root = output_root()
    history, name, top, members = find(sweep, overrides)
    trials = trials_of(members)
    drawn: dict[str, Figure] = {}
    page = _page(history, top, trials, drawn)
    folder = root / "reports" / f"{name}-{top.id[:8]}"
    make_folder(folder)
    run = Run(Tracker(root, name), top.id)
    for title, figure in drawn.items():
        figure.savefig(folder / f"{title}.png")
        run.file(folder / f"{title}.png", "report")
    write_atomically(folder / PAGE, page.html())
    run.file(folder / PAGE, "report")
    Screen().say(escape(str(folder / PAGE)))
    run.tracker.check_delivered()
    return folder / PAGE


def find(sweep: str, overrides: Sequence[str] = ()) -> tuple[History, str, Record, list[Record]]:
    """Return the history, the experiment's name, the sweep's run and its trials; see `report` for the arguments."""
    digest = None
    if Path(sweep).suffix in (".yaml", ".yml"):
        experiment = load_experiment(sweep, overrides)
        sweep, digest = experiment.name, digest_of(experiment)
    elif overrides:
        raise UserError(f"{sweep} is a name, not a file: changes ({' '.join(overrides)}) belong to a file")
    history = History(tracking_uri(output_root()))
    return history, sweep, *latest(history, sweep, digest)


def _page(history: History, top: Record, trials: Sequence[Trial], drawn: dict[str, Figure]) -> Page:
    done = [one.outcome for one in trials if one.outcome]
    groups = grouped(done)
    names = names_of(groups)
    cost = "gpu_hours" if any(one.gpu_hours for one in done) else "hours"
    targets = ", ".join(dict.fromkeys(one.record.tags["target"] for one in trials if one.outcome))
    page = Page(f"{top.name}: results of the sweep")
    stopped = sum(one.stopped for one in trials)
    ended = f", {stopped} more were stopped early by the median rule, so not all values are seen" if stopped else ""
    page.text(
        f"{len(done)} of {len(trials)} trials have a result, on {targets}{ended}. Scores are measured on the target's "
        f"query and gallery images; ± is one standard deviation over n seeds. MLflow run {top.id}."
    )
    spent = [(one.record.tags.get("budget", NO_BUDGET), one.record.metrics) for one in trials if one.outcome]
    note = budget_note((budget, int(metrics["pretrain_steps"])) for budget, metrics in spent if budget != NO_BUDGET)
    if note:
        page.text(f"Budget of the pre-trainings: {note}.")
    lines = curves(groups)
    if all(len(line.points) == 1 for line in lines):  # a single fraction, as in a search over other keys
        lines = []
    if 0 < len(lines) <= _MOST_CURVES:
        _add_fractions(page, lines, groups, drawn)
    elif lines:
        page.text(f"The {len(lines)} curves over the fraction are too many for one figure, so it is left out.")
    _add_stems(page, groups)
    page.heading("All settings")
    _add_settings(page, groups, names, cost)
    _add_costs(page, history, trials, groups, names, cost, drawn)
    _add_published(page, history, trials, groups, names)
    _add_failures(page, trials)
    return page


def _add_fractions(page: Page, lines: Sequence[Curve], groups: Sequence[Group], drawn: dict[str, Figure]) -> None:
    """Add the curves over the fraction, and compare them with the published claim."""
    nothing = [group for group in groups if group.first.fraction == 0]
    figure = fraction_curves(lines, dict(zip(names_of(nothing), nothing, strict=True)))
    drawn["fraction"] = figure
    page.heading("How much of the pool")
    caption = "Score over the fraction of the pool, by strategy; dashed from 50 % on: the level of the whole pool."
    page.figure(figure, caption)
    compared = [(line, line.at(CLAIMED), line.at(1.0)) for line in lines]
    both = [(line, half, whole) for line, half, whole in compared if half is not None and whole is not None]
    if not both:
        page.text("The published claim compares half of a pool with the whole pool: this sweep did not run both.")
        return
    page.text(
        "The published claim: the half of LUPerson that CFS ranks highest pre-trains as well as all of LUPerson. The "
        "difference below, in points of mAP, tests it here; its spread is the root of both variances over seeds."
    )
    rows = []
    for line, half, whole in both:
        spread = math.hypot(half.std("mAP"), whole.std("mAP"))
        gain = 100 * (half.mean("mAP") - whole.mean("mAP"))
        scores = [_score(half, "mAP"), _score(whole, "mAP"), f"{round(gain, 1) + 0.0:+.1f}", _number(100 * spread)]
        rows.append([line.name, *scores, f"{len(half.members)}, {len(whole.members)}"])
    page.table(["strategy", "mAP % at 50 %", "mAP % of all", "difference", "spread", "n"], rows)


def _add_stems(page: Page, groups: Sequence[Group]) -> None:
    """Add a table with a column per stem, if more than one was run."""
    stems = [stem for stem in STEMS if any(group.first.stem == stem for group in groups)]
    if len(stems) < 2:
        return
    page.heading("Stems")
    page.text("mAP % / Rank-1 % with everything but the stem equal.")
    lines: dict[str, dict[str, Group]] = {}
    for name, group in zip(names_of(groups, ("backbone", "method", "adapt")), groups, strict=True):
        lines.setdefault(name, {})[group.first.stem] = group
    page.table(["stem", *stems], [[name, *(_both(by.get(stem)) for stem in stems)] for name, by in lines.items()])


def _add_settings(page: Page, groups: Sequence[Group], names: Sequence[str], cost: str) -> None:
    page.table(
        ["setting", "n", *map(percent, _SETTING_METRICS), "images", "GPU-hours" if cost == "gpu_hours" else "hours"],
        [
            [
                name,
                str(len(group.members)),
                *(_score(group, score) for score in _SETTING_METRICS),
                f"{group.mean('images'):,.0f}",
                f"{group.mean(cost):.3g}",
            ]
            for name, group in zip(names, groups, strict=True)
        ],
    )


def _add_costs(
    page: Page,
    history: History,
    trials: Sequence[Trial],
    groups: Sequence[Group],
    names: Sequence[str],
    cost: str,
    drawn: dict[str, Figure],
) -> None:
    """Add accuracy over cost with its Pareto front, and the separate cost of selection."""
    drawn["cost"] = cost_figure(groups, cost)
    page.heading("What it cost")
    by_gpu, trained = cost == "gpu_hours", "pre-training, fine-tuning and adaptation"
    unit = "GPU-hours" if by_gpu else "Hours by the clock (no GPU was used)"
    stages = trained if by_gpu else f"{trained}, and of the evaluation; an interrupted stage counts from then on"
    page.text(
        f"{unit} of a setting are those of its own {stages}. A setting lies on the Pareto front if no cheaper one "
        "reaches its mAP."
    )
    panels = "cost and over images, each" if len(drawn["cost"].axes) > 1 else "cost,"
    page.figure(drawn["cost"], f"mAP over {panels} with its Pareto front; the numbers are those of the table.")
    front = pareto([group.mean(cost) for group in groups], [group.mean("mAP") for group in groups])
    page.table(
        ["on the Pareto front", "mAP %", "GPU-hours" if cost == "gpu_hours" else "hours", "images"],
        [
            [
                f"{number}. {names[i]}",
                _score(groups[i], "mAP"),
                f"{groups[i].mean(cost):.3g}",
                f"{groups[i].mean('images'):,.0f}",
            ]
            for number, i in enumerate(front, 1)
        ],
    )
    spent = selection_costs(history, [one.record for one in trials if one.outcome])
    if spent:
        page.text("Selection took this in addition, once for all trials that use it:")
        page.table(
            ["stage", "runs", "GPU-hours", "hours"],
            [[stage, str(runs), f"{gpu:.3g}", f"{hours:.3g}"] for stage, (runs, gpu, hours) in spent.items()],
        )


def _add_published(
    page: Page, history: History, trials: Sequence[Trial], groups: Sequence[Group], names: Sequence[str]
) -> None:
    """Add tables of measured and of published results, and say whether they can be compared."""
    page.heading("Measured, and published")
    measured_by = {one.outcome.label: one.record for one in trials if one.outcome}
    best: dict[tuple[str, str, str], int] = {}
    for i, group in enumerate(groups):
        record = measured_by[group.first.label]
        key = (record.tags["target"], _TASKS[group.first.adapt], f"{group.first.backbone} {group.first.stem}")
        if key not in best or group.mean("mAP") > groups[best[key]].mean("mAP"):
            best[key] = i
    page.text("Measured here: the best setting of each network.")
    page.table(
        ["measured", "target", "task", "mAP %", "Rank-1 %", "n"],
        [
            [names[i], target, task, _score(groups[i], "mAP"), _score(groups[i], "rank1"), str(len(groups[i].members))]
            for (target, task, _), i in best.items()
        ],
    )
    shown: dict[tuple[str, str], Sequence[Published]] = {}
    for (target, task, _), i in best.items():
        page.text(_comparable(history, measured_by[groups[i].first.label], target))
        shown |= {(task, target.partition(" ")[0]): published_for(task, target.partition(" ")[0])}
    results = list(dict.fromkeys(one for found in shown.values() for one in found))
    page.table(
        ["published", "pre-trained on", "target", "task", "mAP %", "Rank-1 %", "by"],
        [
            [one.model, one.pretrained, one.dataset, one.task, f"{one.mAP:.1f}", f"{one.rank1:.1f}", one.source]
            for one in results
        ],
    )


def _comparable(history: History, record: Record, target: str) -> str:
    """Say in a sentence whether the measured result can be compared with published ones."""
    evaluation = history.get(record.tags.get("run.metrics", ""))
    counts = evaluation.metrics if evaluation else {}
    queries = counts["queries"] + counts["skipped_queries"] if "queries" in counts else None
    reason = incomparable(target, None if queries is None else int(queries), int(counts["gallery"]) if counts else None)
    if reason is not None:
        return reason
    return (
        "The test set is the public one. The scores can be compared as far as pool, epochs, image size and backbone "
        "are the same as in the publications."
    )


def _add_failures(page: Page, trials: Sequence[Trial]) -> None:
    failed = [one for one in trials if one.outcome is None]
    if failed:
        page.heading("Trials without a result")
        rows = [[one.record.tags.get("row", one.record.name), one.error] for one in failed]
        page.table(["trial", "why"], rows, words=True)


def _both(group: Group | None) -> str:
    return "–" if group is None else f"{_score(group, 'mAP')} / {_score(group, 'rank1')}"


def _score(group: Group, name: str) -> str:
    std = group.std(name)
    return f"{100 * group.mean(name):.1f}" + ("" if math.isnan(std) else f" ± {100 * std:.1f}")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
