"""Figures of the page on selections, which MLflow keeps too."""

from matplotlib.figure import Figure

from rayreid.evaluation.page import Page
from rayreid.tracking.run import Run


def show(page: Page, run: Run, figure: Figure, name: str, caption: str, photographs: bool = False) -> None:
    """Add a figure to the page, and log it under `figures/selections/`."""
    page.figure(figure, caption, photographs)
    run.figure(figure, f"figures/selections/{name}.png")
