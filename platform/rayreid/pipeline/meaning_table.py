"""The part of the page on selections that says what the order of each selection's priorities means."""

from collections.abc import Mapping

from rayreid.evaluation.page import Page
from rayreid.selection.meaning import Diagnosis, Separation, interpret
from rayreid.tracking.names import slug
from rayreid.tracking.run import Run

_COLUMNS = {
    "mean": "mean",
    "std": "standard deviation",
    "source_mean_length": "mean length θs",
    "target_mean_length": "mean length θt",
    "rank_direction": "direction",
    "rank_similarity": "similarity",
    "rank_brightness": "brightness",
    "rank_height": "height",
    "rank_area": "area",
}
_NOT_KNOWN = "not known: made by an earlier version"


def add_meanings(
    page: Page, figures: Mapping[str, Diagnosis | None], separations: Mapping[str, Separation | None], run: Run
) -> None:
    """Add a table of figures with the meaning in a word, and a sentence for each peculiarity; log both.

    Args:
        page: The page.
        figures: Figures of the priorities of each selection that scores or ranks images; None: not known.
        separations: How well they separate the target's own domain; None: not known.
        run: MLflow run of the comparison.
    """
    if not figures:
        return
    page.heading("What the order means")
    page.text(
        "Figures of a sample of the pool. Mean length: length of the mean of the unit features, 1 if all point one "
        "way. Direction: rank correlation of the score with the projection of θs on the mean feature of θt; near 1, "
        "the score is nothing else. Similarity: the same with the similarity of θs to the target's images; below 0, a "
        "high score means distance. Brightness, height, area: the same with these."
    )
    meanings = {label: interpret(one, separations[label]) for label, one in figures.items() if one}
    page.table(
        ["selection", "meaning", *_COLUMNS.values()],
        [
            [label, meanings[label].word if one else _NOT_KNOWN, *_shown(one.figures() if one else {})]
            for label, one in figures.items()
        ],
    )
    for label, meaning in meanings.items():
        for reason in meaning.reasons.values():
            page.text(f"{label}: {reason}.")
    run.tags({f"score_meaning.{slug(label)}": meaning.word for label, meaning in meanings.items()})
    for label, one in figures.items():
        if one:
            run.metrics({f"diagnosis.{slug(label)}.{name}": value for name, value in one.figures().items()})


def _shown(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures[name]:.3g}" if name in figures else "–" for name in _COLUMNS]
