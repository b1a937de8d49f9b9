"""Measures of kept images beside those of the pool, on the page on selections."""

import numpy as np
import pyarrow as pa

from rayreid.evaluation.page import Page
from rayreid.parquet import write_table
from rayreid.pipeline.compared_selection import Selection
from rayreid.pipeline.measure_figures import add_measures, known_measures
from rayreid.selection.image_measures import MEASURES
from recorded_run import RecordedRun
from small_store import small_store


def test_the_index_knows_heights_and_aspects(tmp_path):
    store = small_store(tmp_path)  # 20, 30 and 40 high, 10 wide
    measures = known_measures(store)
    assert measures["height"].tolist() == [20] * 4 + [30] * 4 + [40] * 4
    assert measures["aspect"].tolist() == [2] * 4 + [3] * 4 + [4] * 4


def test_measures_of_quality_replace_those_of_the_index(tmp_path):
    store = small_store(tmp_path / "store")
    (tmp_path / "quality").mkdir()
    columns = {name: pa.array(np.arange(12, dtype=np.float32)) for name in MEASURES}
    write_table(tmp_path / "quality/quality.parquet", pa.table({"key": store.keys.tolist(), **columns}))
    measures = known_measures(store, tmp_path / "quality")
    assert list(measures) == list(MEASURES) and measures["sharpness"].tolist() == list(range(12))


def test_a_measure_is_drawn_and_a_constant_is_told(tmp_path):
    store = small_store(tmp_path)
    page, run = Page("mine"), RecordedRun()
    tall = Selection("tall", "random", "select/1", {"count": 4}, store.heights.astype(float))
    unknown = np.full(12, np.nan)
    measures = {**known_measures(store), "sharpness": unknown, "contrast": np.where(np.arange(12) < 3, np.nan, 0.5)}
    add_measures(page, store, [tall], measures, run)
    html = page.html()
    assert "sharpness: not known of any image." in html and "contrast: 0.5 in all images." in html
    [figure] = run.drawn.values()
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == list(known_measures(store))
    heights = figure.axes[0].patches
    assert heights[0].get_label() == "whole pool" and heights[1].get_data().values[-1] == 1


def test_without_a_measure_that_varies_there_is_no_figure(tmp_path):
    page, run = Page("mine"), RecordedRun()
    add_measures(page, small_store(tmp_path, shards=1), [], {"height": np.full(4, 20.0)}, run)
    assert run.drawn == {} and "height: 20 in all images." in page.html()
