"""Comparison of two evaluations of the same queries, query by query, with a confidence interval. Needs no Ray."""

from collections.abc import Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.evaluation.canvas import PICTURES, save_picture
from rayreid.evaluation.comparison import Comparison, align, compare_queries
from rayreid.evaluation.metrics import METRICS, percent
from rayreid.evaluation.retrieval_figures import cmc_curve
from rayreid.evaluation.stored import read_curve, read_queries
from rayreid.inference.named_inputs import Made, find_artifact, output_file


def compare(
    first: str,
    second: str,
    out: str = "compare.png",
    confidence: float = 0.95,
    extremes: int = 5,
    screen: Screen | None = None,
) -> Comparison:
    """Print how two evaluations differ, and draw the CMC curves of both.

    Args:
        first: The baseline, an artifact of `evaluate`: its folder, or `evaluate/<id>`.
        second: The evaluation to compare with the baseline.
        out: The image file to write.
        confidence: Confidence level of the interval, in (0, 1).
        extremes: How many of the queries that gained and lost most to list.
        screen: Prints the results.

    Returns:
        The difference in mAP, with its interval.

    Raises:
        UserError: An artifact does not exist or is not an evaluation, or the two have different queries or galleries.
    """
    screen = screen or Screen()
    path = output_file(out, "--out", PICTURES)
    if not 0 < confidence < 1:
        raise UserError(f"--confidence {confidence:g}: must be a number between 0 and 1, e.g. 0.95")
    both = [_evaluation(text) for text in (first, second)]
    if both[0].folder.name == both[1].folder.name:
        raise UserError(f"{first} and {second} are the same evaluation")
    _check_targets(both)
    keys, precision = _queries(both)
    result = compare_queries(precision[0], precision[1], confidence=confidence)
    names = [made.folder.name for made in both]
    _show(screen, names, both, result)
    _show_extremes(screen, keys, precision, extremes)
    curves = {name: read_curve(made.folder) for name, made in zip(names, both, strict=True)}
    save_picture(cmc_curve(curves), path, "--out")
    screen.say(f"drawn: {escape(str(path))}")
    return result


def _evaluation(text: str) -> Made:
    made = find_artifact(text)
    if made.recipe["stage"] != "evaluate":
        raise UserError(f"{text} is of stage {made.recipe['stage']}; compare takes two artifacts of evaluate")
    return made


def _check_targets(both: Sequence[Made]) -> None:
    """Refuse different targets. Equal keys are not enough: the two editions of MSMT17 have the same keys."""
    first, second = both
    if first.recipe["inputs"]["target"] == second.recipe["inputs"]["target"]:
        return
    stores = [made.input("target", "ingest") for made in both]
    known = [store.facts for store in stores if store is not None]
    if len(known) < 2:
        raise UserError(
            "the two evaluations are of different targets, or of one target that was ingested from two folders"
        )
    if known[0]["fingerprint"] != known[1]["fingerprint"]:
        raise UserError(
            "the two evaluations are of different targets: "
            f"{known[0]['dataset']}, {known[0]['images']:,} images, and {known[1]['dataset']}, {known[1]['images']:,}"
        )


def _queries(both: Sequence[Made]) -> tuple[list[str], list[np.ndarray]]:
    """Return the keys of the queries, ascending, and the average precisions of both models in that order."""
    keys, precision = zip(*(read_queries(made.folder) for made in both), strict=True)
    return sorted(keys[0]), align(keys, precision)


def _show(screen: Screen, names: Sequence[str], both: Sequence[Made], result: Comparison) -> None:
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("")
    for metric in METRICS:
        table.add_column(percent(metric), justify="right")
    for name, made in zip(names, both, strict=True):
        table.add_row(escape(name), *(f"{100 * made.facts[metric]:.1f}" for metric in METRICS))
    table.add_row("difference", *(f"{100 * (both[1].facts[m] - both[0].facts[m]):+.1f}" for m in METRICS))
    screen.console.print(table)
    verdict = "more than chance" if result.significant else "may be chance"
    screen.say(
        f"mAP {100 * result.difference:+.2f} points, {100 * result.confidence:g} % interval "
        f"{100 * result.low:+.2f} to {100 * result.high:+.2f}: {verdict}"
    )
    ties = result.queries - result.better - result.worse
    screen.say(
        f"{result.queries:,} queries: {escape(names[1])} is better on {result.better:,}, worse on {result.worse:,}, "
        f"equal on {ties:,}"
    )


def _show_extremes(screen: Screen, keys: Sequence[str], precision: Sequence[np.ndarray], count: int) -> None:
    """Print the queries that gained and lost most, with both average precisions."""
    gain = np.nan_to_num(precision[1] - precision[0])
    order = np.argsort(gain, kind="stable")
    gained = [i for i in order[::-1][:count] if gain[i] > 0]
    lost = [i for i in order[:count] if gain[i] < 0]
    for title, shown in (("gained most", gained), ("lost most", lost)):
        if shown:
            screen.say(f"[bold]{title}[/]")
        for i in shown:
            screen.say(f"  {100 * precision[0][i]:5.1f} → {100 * precision[1][i]:5.1f}  {escape(keys[i])}")
