"""A report as one HTML file that needs no other: its figures are inside it."""

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #d9dce1; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #5f7a8a; font-size: .9rem; }
"""


class Page:
    """A page, written from top to bottom; all text is taken literally.

    Args:
        title: its heading.
    """

    def __init__(self, title: str):
        self.title = title
        self._body: list[str] = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """A heading of level 2 or 3."""
        self._body.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._body.append(f"<p>{escape(text)}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; its first column names the rows."""
        lines = [_row(head, "th"), *(_row(row, "td") for row in rows)]
        self._body.append("<table>\n" + "\n".join(lines) + "\n</table>")

    def figure(self, figure: Figure, caption: str, photographs: bool = False) -> None:
        """A figure with a caption, as PNG; one made of photographs as JPEG, a tenth of the size."""
        sink = io.BytesIO()
        kind = "jpeg" if photographs else "png"
        figure.savefig(sink, format=kind, pil_kwargs={"quality": 85} if photographs else None)
        data = base64.b64encode(sink.getvalue()).decode()
        self._body.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        """The whole file."""
        body = "\n".join(self._body)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
