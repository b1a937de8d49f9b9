import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rayreid.evaluation.image_sheets import image_sheet
from rayreid.evaluation.page import Page
from rayreid.evaluation.score_figures import score_histogram

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Follows which elements are open; keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture
def page() -> Page:
    page = Page("a < b & c")
    page.heading("One")
    page.text("<script>alert(1)</script>")
    page.table(["", "n"], [["x & y", "1"], ["z", "2"]])
    page.figure(score_histogram(np.random.default_rng(0).random(50), cut=0.5), 'the "cut"')
    page.figure(image_sheet([np.full((20, 10, 3), 90, np.uint8)] * 3), "sheet", photographs=True)
    return page


def test_the_page_is_whole_and_takes_text_literally(page):
    reader = Reader()
    reader.feed(page.html())
    assert reader.open == [] and page.html().startswith("<!DOCTYPE html>")
    tags = [tag for tag, _ in reader.seen]
    assert "script" not in tags and (tags.count("tr"), tags.count("td"), tags.count("h1")) == (3, 4, 1)
    words = "".join(reader.text)
    assert "<script>alert(1)</script>" in words and words.count("a < b & c") == 2 and "x & y" in words


def test_the_page_needs_no_other_file(page):
    html = page.html()
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import|<link""", html)
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', html)
    assert [kind for kind, _ in found] == ["png", "jpeg"]
    for kind, data in found:
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        image.load()
        assert image.format.lower() == kind and min(image.size) > 100


def test_links_lead_to_the_headings(page):
    page.heading("Two <b>")
    page.heading("smaller", level=3)
    reader = Reader()
    reader.feed(page.html())
    places = {attributes["id"] for tag, attributes in reader.seen if "id" in attributes}
    links = [attributes["href"] for tag, attributes in reader.seen if tag == "a"]
    assert links == ["#part-1", "#part-2"] and places == {"part-1", "part-2"}
    assert '<h2 id="part-2">Two &lt;b&gt;</h2>' in page.html()
