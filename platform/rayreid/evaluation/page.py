"""A report as one HTML file that needs no other: its figures are inside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; max-width: 1140px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 3rem; padding-top: 1rem;
border-top: 1px solid #d9dce1; } h3 { font-size: 1.05rem; margin: 1.8rem 0 .3rem; } p { max-width: 50rem; }
nav { margin: 1rem 0 1.5rem; } nav a { display: inline-block; margin-right: 1.2rem; } a { color: #2a5fa5; }
.table { overflow-x: auto; margin: .8rem 0 1.2rem; } table { border-collapse: collapse; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #d9dce1; text-align: right; white-space: nowrap;
font-variant-numeric: tabular-nums; } th { font-weight: 600; } thead th { border-bottom: 2px solid #9aa3ad; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .words td, .words th { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #4b6373; font-size: .9rem; }
.key span { display: inline-block; margin-right: 1.2rem; } .key i { display: inline-block; width: .8em; height: .8em;
margin-right: .4em; }
"""


class Page:
    """A page, written from top to bottom; all text is taken literally.

    Args:
        title: its heading.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []
        self._body: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        """A heading of level 2, to which a link at the top of the page leads, or 3."""
        name = ""
        if level == 2:
            self._parts.append(text)
            name = f' id="part-{len(self._parts)}"'
        self._body.append(f"<h{level}{name}>{escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._body.append(f"<p>{escape(text)}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> None:
        """A table; its first column names the rows.

        Args:
            head: a title per column.
            rows: a cell per column each.
            words: all columns hold words, which stand to the left, and not numbers.
        """
        top, body = _row(head, "th"), "\n".join(_row(row, "td") for row in rows)
        kind = "table words" if words else "table"
        table = f"<table>\n<thead>{top}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        self._body.append(f'<div class="{kind}">{table}</div>')

    def key(self, colours: Mapping[str, str]) -> None:
        """What colours mean, name → CSS colour."""
        names = "".join(
            f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items()
        )
        self._body.append(f'<p class="key">{names}</p>')

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
        links = "".join(f'<a href="#part-{number}">{escape(text)}</a>' for number, text in enumerate(self._parts, 1))
        body = "\n".join([f"<h1>{escape(self.title)}</h1>", f"<nav>{links}</nav>" if links else "", *self._body])
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
