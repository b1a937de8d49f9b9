"""The map as a file, and in a browser without a screen: drawn, pointed at, clicked, coloured, without a network."""

import asyncio
import base64
import io
import json
import re
from importlib import util

import numpy as np
import pytest
from PIL import Image

from headless_browser import WEBGL, browse, require_browser
from rayreid.errors import UserError
from rayreid.evaluation import pool_map as pool_map_module
from rayreid.evaluation.cluster_sheets import cluster_sheets
from rayreid.evaluation.pool_map import Categories, ClusterTable, pool_map, require_plotly
from rayreid.evaluation.sprites import make_sprites

COUNT = 600
EVIL = '</script><script>document.title="taken"</script><b>&"'
"""A text that would change a page that does not escape it."""


def drawn_map(**changes) -> str:
    """A map of images in a square grid; every image has a colour of its own."""
    side = int(np.ceil(np.sqrt(COUNT)))
    line, column = np.divmod(np.arange(COUNT), side)
    images = [np.full((32, 16, 3), (10 * (i % 24), 9 * (i // 24), 128), np.uint8) for i in range(COUNT)]
    priority = np.arange(COUNT, dtype=float)
    priority[7] = np.nan
    kept = priority >= COUNT / 2
    clusters = (column // 9).astype(int)
    columns = {
        "priority of cfs": priority,
        "subset of cfs": Categories(("kept", "dropped"), np.where(kept, 0, 1), ("#2a5fa5", "#d9822b")),
        "origin": Categories((EVIL, "shop"), np.where(np.arange(COUNT) == 3, -1, line % 2)),
        "cluster": Categories(("1", "2", "3"), clusters),
    }
    arguments = {
        "title": f"mine {EVIL}",
        "keys": [f"{EVIL}{i}.jpg" for i in range(COUNT)],
        "places": np.stack([column, line], axis=1).astype(np.float32),
        "columns": columns,
        "sprites": make_sprites(images, (128, 64)),
        "clusters": ClusterTable(
            "cluster", (f"cfs{EVIL}",), cluster_sheets(clusters, -priority, {"cfs": priority}, {"cfs": kept})
        ),
        "notes": (f"a note {EVIL}",),
    }
    return pool_map(**{**arguments, **changes})


@pytest.fixture(scope="module")
def html() -> str:
    return drawn_map()


def data_of(html: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def numbers(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), kind)


def test_every_point_has_the_key_place_and_values_of_its_image(html):
    data = data_of(html)
    sprite = numbers(data["sprite"], "<u4")
    assert sorted(sprite) == list(range(COUNT)) and sprite.tolist() != sorted(sprite)  # no category above another
    assert data["keys"] == [f"{EVIL}{image}.jpg" for image in sprite]
    side = int(np.ceil(np.sqrt(COUNT)))
    assert np.array_equal(numbers(data["x"], "<f4"), sprite % side)
    assert np.array_equal(numbers(data["y"], "<f4"), sprite // side)
    priority, subset, origin, cluster = data["columns"]
    assert np.array_equal(numbers(priority["values"], "<f4"), np.where(sprite == 7, np.nan, sprite), equal_nan=True)
    assert np.array_equal(numbers(subset["codes"], "<i2"), np.where(sprite >= COUNT / 2, 0, 1))
    assert numbers(origin["codes"], "<i2")[sprite == 3] == -1 and origin["names"] == [EVIL, "shop"]
    assert len(cluster["colours"]) == 3 and len(set(cluster["colours"])) == 3


def test_no_text_leaves_its_place(html):
    assert EVIL not in html
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert outside.count("&lt;/script&gt;&lt;script&gt;document.title=&#34;taken&#34;") == 4  # title twice, note, cfs
    assert "<script" not in outside


def test_the_file_names_no_other_file(html):
    own = re.sub(r"<script>/\*\*.*?</script>", "", html, flags=re.DOTALL)  # without plotly.js
    assert len(own) < len(html) - 10**6
    assert not re.search(r"""(src|href)=|@import|<link|https?:""", own)


def test_a_cluster_has_its_sheet(html):
    (body,) = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    rows = body.split("</tr>")[:-1]
    assert len(rows) == 3 and all(row.count('class="crop"') == 7 for row in rows)
    assert 'data-sprite="0"' in rows[0] and "0<br><b>" in rows[0]
    assert rows[0].count("data-value") == 4 and " %</td>" in rows[0]


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="a map of images with columns"):
        drawn_map(keys=["one.jpg"])
    with pytest.raises(ValueError, match="clusters are a column of categories"):
        drawn_map(clusters=ClusterTable("priority of cfs", (), ()))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(pool_map_module, "find_spec", lambda name: None if name == "plotly" else util.find_spec(name))
    with pytest.raises(
        UserError, match=r"needs the extra rayreid\[map\]: pip install umap-learn plotly; or .*--no-map"
    ):
        require_plotly()


PLACE = """(() => {
    const point = pointOf[%d], frame = map.getBoundingClientRect(), {xaxis, yaxis} = map._fullLayout;
    return [frame.left + xaxis._offset + xaxis.d2p(x[point]), frame.top + yaxis._offset + yaxis.d2p(y[point])];
})()"""
"""Where the window shows the point of an image."""
READY = "document.body?.dataset.ready === 'yes'"
SHOWN = """(async crop => {
    const image = new Image();
    image.src = crop.style.backgroundImage.slice(5, -2);
    await image.decode();
    const scale = parseFloat(crop.style.backgroundSize) / image.width;
    const [left, top] = crop.style.backgroundPosition.split(" ").map(text => -parseFloat(text) / scale);
    const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
    brush.drawImage(image, -left - 32, -top - 64);
    return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3);
})(document.querySelector("%s"))"""
"""The colour in the middle of a crop."""


def inks(picture: bytes) -> set[tuple[int, ...]]:
    """The colours of a picture that are neither white nor grey."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3).astype(int)
    return set(map(tuple, (pixels[np.ptp(pixels, axis=1) > 60] // 32).tolist()))


@pytest.mark.slow
def test_the_map_in_a_browser(html, tmp_path):
    require_browser()
    (tmp_path / "map.html").write_text(html)
    (tmp_path / "profile").mkdir()

    async def point_at(tab, image):
        place = await tab.value(PLACE % image)
        shown = f"!tip.hidden && tip.querySelector('b').textContent === data.keys[pointOf[{image}]]"
        while not await tab.value(shown):  # plotly.js passes over movements while it draws
            await tab.mouse("mouseMoved", place[0] - 2, place[1])
            await tab.mouse("mouseMoved", *place)
            await asyncio.sleep(0.2)
        return place

    async def pin(tab, image):
        while not await tab.value(f"pinned.has(pointOf[{image}])"):  # nor does it see all clicks then
            await tab.click(*await point_at(tab, image))
            await asyncio.sleep(0.2)

    async def visit(tab):
        await tab.open((tmp_path / "map.html").as_uri(), READY)
        assert await tab.value("element('trouble').hidden")  # there is WebGL
        assert (await tab.value("document.title")).startswith("mine </script>")
        drawn = inks(await tab.picture())
        assert len(drawn) > 5  # many priorities, many colours

        await point_at(tab, 100)
        words = "[...document.querySelectorAll('%s span')].map(line => line.textContent)"
        assert await tab.value(words % "#tip") == ["priority of cfs: 100", "cluster: 1"]
        colour = await tab.value(SHOWN % "#tip .crop")
        assert np.abs(np.array(colour) - (10 * (100 % 24), 9 * (100 // 24), 128)).max() < 12
        await pin(tab, 100)
        await tab.until("document.querySelectorAll('.pin').length === 1")
        await pin(tab, 333)
        await tab.until("document.querySelectorAll('.pin').length === 2 && map.layout.shapes.length === 2")
        assert await tab.value("document.querySelector('.pin b').textContent") == f"{EVIL}333.jpg"
        assert await tab.value(f"({words % '.pin:first-child'}).slice(0, 2)") == [
            *("priority of cfs: 333", "subset of cfs: kept")
        ]
        await tab.value("document.querySelector('.pin button').click()")
        await tab.until("document.querySelectorAll('.pin').length === 1 && map.layout.shapes.length === 1")

        await tab.value("element('colour').value = '1'; element('colour').dispatchEvent(new Event('change')); 0")
        await tab.until("map.data[0].marker.cmax === 3")
        assert await tab.value("[...legend.querySelectorAll('button')].map(line => line.textContent)") == [
            *("kept300", "dropped300")
        ]
        recoloured = inks(await tab.picture())
        assert recoloured != drawn
        await tab.value("legend.querySelector('button').click()")  # only what is kept
        await tab.until("map.data[0].selectedpoints?.length === 300")
        assert "Only subset of cfs: kept (300)" in await tab.value("element('focus').textContent")

        await tab.value("document.querySelector('[data-cluster=\"2\"]').click()")
        await tab.until("map.data[0].selectedpoints?.length === 168 && map.layout.annotations.length === 1")
        order = "[...document.querySelectorAll('[data-cluster]')].map(button => button.dataset.cluster).join('')"
        assert await tab.value(order) == "012"
        await tab.value("document.querySelector('[data-sort=\"1\"]').click()")  # 216, 216 and 168 images
        await tab.value("document.querySelector('[data-sort=\"1\"]').click()")
        assert await tab.value(order) == "201"
        await tab.value("document.querySelector('#clusters .crop').scrollIntoView()")
        await tab.until("document.querySelector('#clusters .crop').style.backgroundImage.includes('blob:')")
        return tab.requests, tab.errors

    requests, errors = browse(visit, tmp_path / "profile", WEBGL)
    assert requests == [(tmp_path / "map.html").as_uri()] and errors == []


@pytest.mark.slow
def test_a_browser_without_webgl_draws_slowly_and_says_so(html, tmp_path):
    require_browser()
    (tmp_path / "map.html").write_text(html)
    (tmp_path / "profile").mkdir()

    async def visit(tab):
        await tab.open((tmp_path / "map.html").as_uri(), READY)
        return await tab.value("[element('trouble').textContent, document.querySelectorAll('path.point').length]")

    said, points = browse(visit, tmp_path / "profile", ("--disable-3d-apis",))
    assert "no WebGL" in said and points == COUNT
