"""A report as one HTML file that needs no other: its figures are inside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class Page:
    """A page, written from top to bottom; all text is taken literally.

    Args:
        title: its heading.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []
        self._blocks: list[tuple[str, dict[str, Any]]] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading of level 2, to which a link at the top of the page leads, or 3."""
        if level == 2:
            self._parts.append(text)
        self._add("heading", text=text, level=level, part=len(self._parts) if level == 2 else None)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._add("paragraph", text=text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> None:
        """Add a table; its first column names the rows.

        Args:
            head: A title per column.
            rows: A cell per column each.
            words: All columns hold words, which are aligned left, and not numbers.
        """
        self._add("table", head=head, rows=rows, words=words)

    def key(self, colours: Mapping[str, str]) -> None:
        """Add a key of what colours mean, name → CSS colour."""
        self._add("key", colours=colours)

    def figure(self, figure: Figure, caption: str, photographs: bool = False) -> None:
        """Add a figure with a caption, as PNG; one made of photographs as JPEG, a tenth of the size."""
        sink = io.BytesIO()
        kind = "jpeg" if photographs else "png"
        figure.savefig(sink, format=kind, pil_kwargs={"quality": 85} if photographs else None)
        self._add("figure", format=kind, data=base64.b64encode(sink.getvalue()).decode(), caption=caption)

    def html(self) -> str:
        """Return the whole file."""
        template = _TEMPLATES.get_template("page.html.jinja")
        return template.render(title=self.title, parts=self._parts, blocks=self._blocks)

    def _add(self, kind: str, **values: Any) -> None:
        """Add a block, which the macro `kind` of `blocks.html.jinja` draws from these values."""
        self._blocks.append((kind, values))
