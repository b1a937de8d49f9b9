"""A map of a pool of images as one HTML file: points to colour, thumbnails under the pointer, and sheets of clusters.

The file needs no network: it embeds plotly.js, which draws the points with WebGL, and the thumbnails as sprite sheets.
The script of the page is `templates/pool_map.js`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from markupsafe import Markup

from rayreid.errors import UserError, missing_extra
from rayreid.evaluation.cluster_sheets import ClusterSheet
from rayreid.evaluation.page import TEMPLATES
from rayreid.evaluation.sprites import SHEET, Sprites

COLOURS = (
    *("#332288", "#117733", "#aa4499", "#2a8fb3", "#b8632f", "#882255"),
    *("#44aa99", "#8a8a1f", "#661100", "#5b7fd1", "#cc6677", "#4d4d4d"),
)
"""Colours of categories, dark enough for a white ground; the first six can be distinguished by colour-blind people."""
SCALE = ("#0d0887", "#4c02a1", "#7e03a8", "#aa2395", "#cc4778", "#e66c5c", "#f2844b")
"""Colours of numbers from low to high: the map plasma without its yellow end, which is hardly visible on white."""
NONE = "#c4c9d0"
"""Colour of images without a value."""
_WITHOUT = "leave the map out with --no-map"


@dataclass(frozen=True)
class Categories:
    """A column of categories.

    Attributes:
        names: Names of the categories.
        codes: Category of each image, int (n,): positions in `names`; −1 for none.
        colours: CSS colours of the categories; by default `COLOURS` in turn.
    """

    names: Sequence[str]
    codes: np.ndarray
    colours: Sequence[str] = ()


@dataclass(frozen=True)
class ClusterTable:
    """Sheets of the clusters of a column.

    Attributes:
        column: Name of the column of categories whose codes are the clusters.
        selections: Names of the selections, in the order of `ClusterSheet.scores` and `ClusterSheet.kept`.
        sheets: The sheets.
    """

    column: str
    selections: Sequence[str]
    sheets: Sequence[ClusterSheet]


def pool_map(
    title: str,
    keys: Sequence[str],
    places: np.ndarray,
    columns: Mapping[str, np.ndarray | Categories],
    sprites: Sprites,
    clusters: ClusterTable | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return a map as one HTML file; all text is escaped.

    Args:
        title: Title of the page.
        keys: Key of each image, (n,).
        places: Coordinates of each image, (n, 2), finite.
        columns: What the images can be coloured by, by name: numbers float (n,), NaN for none, or categories.
        sprites: A thumbnail of each image, in the same order.
        clusters: Sheets of the clusters.
        notes: Sentences below the title.

    Raises:
        UserError: plotly is missing.
        ValueError: The arguments have different numbers of images.
    """
    sizes = {len(keys), len(places), *(len(_values(column)) for column in columns.values())}
    if len(sizes) > 1 or not columns:
        raise ValueError(f"a map of images with columns, not of {sizes} images with {len(columns)} columns")
    # In this order no category lies above another one. The sprites stay in theirs.
    order = np.random.default_rng(0).permutation(len(keys))
    data = {
        "keys": [str(keys[i]) for i in order],
        "sprite": _packed(order, "<u4"),
        "x": _packed(places[order, 0], "<f4"),
        "y": _packed(places[order, 1], "<f4"),
        "columns": [_column(name, column, order) for name, column in columns.items()],
        "sheet": {
            "side": SHEET,
            "across": sprites.across,
            "down": sprites.down,
            "thumbnail": [sprites.height, sprites.width],
        },
        "scale": SCALE,
        "none": NONE,
        "clusters": list(columns).index(clusters.column) if clusters else None,
    }
    return TEMPLATES.get_template("pool_map.html.jinja").render(
        title=title,
        notes=notes,
        columns=list(columns),
        clusters=clusters,
        cluster_names=_names(columns[clusters.column]) if clusters else [],
        plotly=Markup(_plotly_js()),
        data=Markup(_json(data)),
        sheets=[base64.b64encode(sheet).decode() for sheet in sprites.sheets],
    )


def require_plotly() -> None:
    """Check that plotly is installed.

    Raises:
        UserError: It is not.
    """
    if find_spec("plotly") is None:
        raise missing_extra("the map of the pool", "map", ["umap-learn", "plotly"], _WITHOUT)


def _plotly_js() -> str:
    """Return the source of plotly.js, which plotly's Python package carries."""
    require_plotly()
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(f"plotly cannot be loaded ({error}): install it again, or {_WITHOUT}") from error
    # In a script element only its end tag has a meaning.
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _column(name: str, column: np.ndarray | Categories, order: np.ndarray) -> dict[str, Any]:
    if not isinstance(column, Categories):
        return {"name": name, "values": _packed(column[order], "<f4")}
    colours = column.colours or [COLOURS[i % len(COLOURS)] for i in range(len(column.names))]
    codes = _packed(column.codes[order], "<i2")
    return {"name": name, "names": list(column.names), "colours": list(colours), "codes": codes}


def _values(column: np.ndarray | Categories) -> np.ndarray:
    return column.codes if isinstance(column, Categories) else column


def _names(column: np.ndarray | Categories) -> Sequence[str]:
    if not isinstance(column, Categories):
        raise ValueError("clusters are a column of categories")
    return column.names


def _packed(values: np.ndarray, kind: str) -> str:
    """Return an array as base64 of little-endian numbers, a third of the size of their digits."""
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand in a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
