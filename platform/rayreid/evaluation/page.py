"""A report as one self-contained HTML file, with its figures inside."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""Templates of pages: what is put into them is escaped, and a name that is missing is an error."""


class Page:
    """A page, written from top to bottom; all text is escaped.

    Args:
        title: The heading of the page.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []
        self._blocks: list[tuple[str, dict[str, Any]]] = []
        self._sorts = False

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading of level 2, which the links at the top of the page include, or of level 3."""
        if level == 2:
            self._parts.append(text)
        self._add("heading", text=text, level=level, part=len(self._parts) if level == 2 else None)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._add("paragraph", text=text)

    def link(self, text: str, address: str) -> None:
        """Add a link to another file, by its address relative to the page."""
        self._add("link", text=text, address=address)

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False, sorts: bool = False
    ) -> None:
        """Add a table; its first column names the rows.

        Args:
            head: Titles of the columns.
            rows: Rows with one cell per column.
            words: Whether all columns contain words, which are aligned left, instead of numbers.
            sorts: Whether a click on the head of a column sorts the rows by it.
        """
        self._sorts |= sorts
        self._add("table", head=head, rows=rows, words=words, sorts=sorts)

    def key(self, colours: Mapping[str, str]) -> None:
        """Add a key that explains colours, name → CSS colour."""
        self._add("key", colours=colours)

    def figure(self, figure: Figure, caption: str, photographs: bool = False) -> None:
        """Add a figure with a caption, as PNG; a figure of photographs as JPEG, which takes a tenth of the size."""
        sink = io.BytesIO()
        kind = "jpeg" if photographs else "png"
        figure.savefig(sink, format=kind, pil_kwargs={"quality": 85} if photographs else None)
        self._add("figure", format=kind, data=base64.b64encode(sink.getvalue()).decode(), caption=caption)

    def html(self) -> str:
        """Return the whole file."""
        template = TEMPLATES.get_template("page.html.jinja")
        return template.render(title=self.title, parts=self._parts, blocks=self._blocks, sorts=self._sorts)

    def _add(self, kind: str, **values: Any) -> None:
        """Add a block, which the macro `kind` of `blocks.html.jinja` renders from these values."""
        self._blocks.append((kind, values))
