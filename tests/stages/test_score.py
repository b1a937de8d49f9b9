"""Scoring, interrupted and continued, and what is drawn and judged of it; without a cluster."""

import io
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rich.console import Console

import scoring_parts
from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk
from rayreid.config import Score, Select
from rayreid.console import Screen
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.execution import shard_results
from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.selection.provenance import Provenance
from rayreid.stages import score, score_meaning, scored_sample, select
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun

IMAGES, SHARDS = 30, 3


def scores_of(rows):
    """What the proxies are made to give, each target the same."""
    return (rows / IMAGES).astype(np.float32)


class Proxies:
    """Stands for the actors: a result per five images, in the middle of shards too; stops after some.

    The heads that keep what is known of a sample (`scored_sample.packed`) give it one feature in each proxy.
    """

    def __init__(self, broken=(), stop=None, gain=(1.0,), twice=False, size=5):
        self.broken, self.stop, self.size, self.asked, self.parts = set(broken), stop, size, [], 0
        self.gain, self.twice = np.asarray(gain, np.float32), twice

    def __call__(self, store, rows, build, batch_size):
        asked = [int(row) for piece in rows for row in piece]
        kept = build.keywords.get("keep", False)
        for start in range(0, len(asked), self.size):
            if self.parts == self.stop:
                raise KeyboardInterrupt
            self.parts += 1
            part = asked[start : start + self.size]
            self.asked += part
            good = np.array([row for row in part if row not in self.broken], np.int64)
            values = scores_of(good)[:, None] * self.gain
            if kept:
                values = np.concatenate([values, self.sample(good)], axis=1, dtype=np.float32)
            result = (
                values if len(good) else np.zeros(0, np.float32),  # as of a `Pass`
                {row: f"truncated {row}" for row in part if row in self.broken},
            )
            for _ in range(1 + self.twice):
                yield good, *result

    def sample(self, rows):
        """Rounding, brightness, and directions of θs and of each θt, which all lie on one line."""
        source = np.stack([scores_of(rows), np.sqrt(1 - scores_of(rows) ** 2)], axis=1)
        target = np.tile([1.0, 0.0], (len(rows), 1))
        own = np.stack([np.full(len(rows), 1e-5), rows % 2], axis=1)
        return np.concatenate([own, source, *[target] * len(self.gain)], axis=1)


@pytest.fixture
def pool(tmp_path) -> Artifact:
    """A stored pool of three shards."""
    artifact = Artifact(tmp_path, "ingest", 1, {})
    artifact.path.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 16)).save(buffer, "JPEG")
    for shard, numbers in enumerate(np.array_split(np.arange(IMAGES), SHARDS)):
        records = [Record(f"{number:02d}.jpg", -1, -1, "pool", "") for number in numbers]
        write_shard(artifact.path, shard, records, lambda record: buffer.getvalue())
    finish_store(artifact.path, SHARDS, "mine", "")
    artifact.finish({})
    return artifact


def planned(pool, config, provenance=None, targets=("",)) -> Artifact:
    """Scores by proxies of which nothing but the files' names is asked."""
    proxy = Artifact(pool.root, "proxy", 1, {})
    proxy.path.mkdir(parents=True, exist_ok=True)
    (proxy.path / "model.safetensors").touch()
    return score.plan(pool, proxy, dict.fromkeys(targets, proxy), config, provenance)


@pytest.fixture
def scoring(pool, monkeypatch):
    """Run the stage with some proxies; gives the facts, the artifact and what was drawn."""

    def scoring(proxies, most=1.0, provenance=None, targets=("",), sheets=False):
        if not sheets:  # the images are read, but not drawn: that takes most of a test's time
            monkeypatch.setattr(score, "image_sheet", lambda images, titles: None)
        monkeypatch.setattr(shard_results, "scoring_actors", lambda: Share(4, 1, True))
        monkeypatch.setattr(shard_results, "stream", proxies)
        artifact = planned(pool, Score(max_bad_fraction=most), provenance, targets)
        artifact.path.mkdir(parents=True, exist_ok=True)
        run, printed = RecordedRun(), io.StringIO()
        facts = artifact.job(StageContext(artifact, artifact.path, run, Screen(Console(file=printed, width=1000))))
        artifact.finish({**facts, "run": "r"})
        shown = printed.getvalue()
        return SimpleNamespace(
            facts=facts, artifact=artifact, figures=run.drawn, logged=run.values, tagged=run.tagged, printed=shown
        )

    return scoring


def listed(artifact: Artifact) -> list[str]:
    return (artifact.path / "undecodable.tsv").read_text().splitlines()


@pytest.fixture
def unfinished(pool) -> Artifact:
    """The artifact of `scoring`, as an interrupted process leaves it."""
    return planned(pool, Score())


def test_every_image_gets_its_score(scoring):
    done = scoring(Proxies(broken=[4]))
    table = score.read_scores(done.artifact.path)
    values = table["cfs"].to_numpy()
    assert table["key"].to_pylist() == [f"{number:02d}.jpg" for number in range(IMAGES)]
    assert np.isnan(values[4]) and np.array_equal(np.delete(values, 4), scores_of(np.delete(np.arange(IMAGES), 4)))
    assert (done.facts["images"], done.facts["bad"]) == (IMAGES, 1)
    assert 0 < done.facts["gpu_hours"] < 1  # of four GPUs
    assert listed(done.artifact) == ["04.jpg\ttruncated 4"]


def test_a_scoring_goes_on_where_it_stopped(scoring, unfinished):
    with pytest.raises(KeyboardInterrupt):
        scoring(Proxies(broken=[4, 12], stop=3))
    assert listed(unfinished) == ["04.jpg\ttruncated 4", "12.jpg\ttruncated 12"]
    proxies = Proxies(broken=[4, 12, 21])
    done = scoring(proxies)
    assert proxies.asked == list(range(10, 30))
    assert done.facts["bad"] == 3
    assert listed(done.artifact) == [f"{row:02d}.jpg\ttruncated {row}" for row in (4, 12, 21)]


def test_a_line_that_was_cut_off_is_written_anew(scoring, unfinished):
    with pytest.raises(KeyboardInterrupt):
        scoring(Proxies(broken=[4, 12], stop=3))
    path = unfinished.path / "undecodable.tsv"
    path.write_text(path.read_text()[:-5])
    scoring(Proxies(broken=[4, 12]))
    assert listed(unfinished) == ["04.jpg\ttruncated 4", "12.jpg\ttruncated 12"]


def test_one_that_stopped_after_its_last_shard_is_finished(scoring, monkeypatch):
    from rayreid.execution.actor_pool import stream

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(score, "draw", fail)
        scoring(Proxies(broken=[4]))
    done = scoring(stream)  # the real one, with nothing left to send to a cluster
    assert (done.facts["images"], done.facts["bad"]) == (IMAGES, 1)


def test_broken_images_of_an_earlier_process_count(scoring, unfinished):
    with pytest.raises(KeyboardInterrupt):
        scoring(Proxies(broken=[1, 2], stop=2), most=0.1)
    with pytest.raises(UserError, match=r"4 of 30 images.*score\.max_bad_fraction=0\.1"):
        scoring(Proxies(broken=[11, 12]), most=0.1)
    done = scoring(Proxies(broken=[11, 12]), most=0.2)
    assert done.artifact.id == unfinished.id and done.facts["bad"] == 4


@pytest.mark.parametrize(
    "broken",
    [[0], [9], range(10), range(20, 30), range(20), [*range(0, 10), *range(11, 30)]],
    ids=["the first", "the last of its shard", "a shard", "the last shard", "two shards", "all but one"],
)
@pytest.mark.parametrize("size", [1, 2, 10])
def test_pieces_of_which_nothing_can_be_decoded_are_marked_like_any_other(scoring, broken, size):
    broken = list(broken)
    done = scoring(Proxies(broken=broken, size=size, gain=(1.0, 0.0), twice=True), targets=("a", "b"))
    table = score.read_scores(done.artifact.path)
    expected = np.where(np.isin(np.arange(IMAGES), broken), np.nan, scores_of(np.arange(IMAGES)))
    np.testing.assert_array_equal(table["cfs_a"].to_numpy(), expected)
    assert (done.facts["images"], done.facts["bad"]) == (IMAGES, len(broken))
    assert len(listed(done.artifact)) == len(broken)


class Vectors(shard_results.ShardResults):
    """Two numbers an image, which only the first result tells."""

    suffix, dtype = ".npy", np.float32

    def shape(self):
        return None

    def encode(self, rows, values):
        assert len(rows) == len(values)
        return values.tobytes()

    def usable(self, path):
        return ~np.isnan(np.frombuffer(path.read_bytes(), np.float32).reshape(-1, 2)[:, 0])


def test_a_shard_that_is_broken_as_a_whole_waits_until_it_is_known_what_a_result_looks_like(pool):
    files = Vectors(pool.path / "vectors", ImageStore(pool.path))
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    files.add(*nothing, dict.fromkeys(range(10), "torn"))
    assert (files.done, files.bad) == (10, 10) and list(files.missing()) == [0, 1, 2]
    with pytest.raises(UserError, match="no image could be decoded"):
        files.finish()
    files.add(np.arange(20, 25), np.ones((5, 2), np.float32), {})
    assert list(files.missing()) == [1, 2]
    files.add(np.arange(25, 30), np.ones((5, 2), np.float32), dict.fromkeys(range(10, 20), "torn"))
    assert list(files.missing()) == [] and (files.done, files.bad) == (IMAGES, 20)
    files.finish()
    again = Vectors(pool.path / "vectors", ImageStore(pool.path))
    assert (again.done, again.bad) == (IMAGES, 20)


def test_results_that_come_twice_count_once(scoring):
    done = scoring(Proxies(broken=[4, 12], twice=True), most=2 / IMAGES)
    assert (done.facts["images"], done.facts["bad"]) == (IMAGES, 2)
    assert listed(done.artifact) == ["04.jpg\ttruncated 4", "12.jpg\ttruncated 12"]
    assert score.read_scores(done.artifact.path).num_rows == IMAGES


def test_several_targets_have_a_column_each_and_their_mean(scoring):
    done = scoring(Proxies(broken=[4], gain=(1.0, 0.5, 0.0)), targets=("a", "b", "c"))
    table = score.read_scores(done.artifact.path)
    assert table.column_names == ["key", "cfs_a", "cfs_b", "cfs_c", "cfs"]
    expected = np.where(np.arange(IMAGES) == 4, np.nan, scores_of(np.arange(IMAGES)))
    for name, gain in {"cfs_a": 1.0, "cfs_b": 0.5, "cfs_c": 0.0, "cfs": 0.5}.items():
        np.testing.assert_allclose(table[name].to_numpy(), gain * expected, atol=1e-7)


def test_the_targets_are_part_of_what_the_scores_are(pool):
    proxies = [Artifact(pool.root, "proxy", 1, {"number": number}) for number in range(3)]

    def scores(targets):
        return score.plan(pool, proxies[0], targets, Score(), None).id

    assert scores({"": proxies[1]}) != scores({"": proxies[2]})
    assert scores({"a": proxies[1], "b": proxies[2]}) == scores({"b": proxies[2], "a": proxies[1]})
    assert scores({"a": proxies[1], "b": proxies[2]}) != scores({"b": proxies[1], "a": proxies[2]})


def test_without_one_usable_image_there_are_no_scores(scoring):
    with pytest.raises(UserError, match="no image could be decoded"):
        scoring(Proxies(broken=range(IMAGES)))


# The sample


@pytest.mark.parametrize("size", [1, 7, IMAGES])
def test_no_image_is_scored_twice_for_the_sake_of_the_sample(scoring, monkeypatch, size):
    monkeypatch.setattr(scored_sample, "SAMPLE", size)
    proxies = Proxies(broken=[4], gain=(1.0, 0.5))
    done = scoring(proxies, targets=("a", "b"))
    assert sorted(proxies.asked) == list(range(IMAGES))
    table = score.read_scores(done.artifact.path)
    expected = np.where(np.arange(IMAGES) == 4, np.nan, scores_of(np.arange(IMAGES)))
    np.testing.assert_array_equal(table["cfs_a"].to_numpy(), expected)
    np.testing.assert_array_equal(table["cfs_b"].to_numpy(), expected * np.float32(0.5))
    found = done.facts.get("diagnosis", {"images": 0})["images"]
    assert found == size - 1  # the broken image has the highest hash of all, so that every sample has it
    assert listed(done.artifact) == ["04.jpg\ttruncated 4"]


def test_a_sample_goes_on_where_it_stopped(scoring, monkeypatch):
    monkeypatch.setattr(scored_sample, "SAMPLE", 12)
    whole = scoring(Proxies())
    shutil.rmtree(whole.artifact.path)
    first, second = Proxies(stop=2, size=3), Proxies(size=3)
    with pytest.raises(KeyboardInterrupt):
        scoring(first)
    done = scoring(second)
    assert len(first.asked) == 6 and len(second.asked) < IMAGES  # finished shards of the sample are kept
    passing = {"run": "", "gpu_hours": 0.0}
    assert {**done.facts, **passing} == {**whole.facts, **passing}
    np.testing.assert_array_equal(score.read_scores(done.artifact.path)["cfs"].to_numpy(), scores_of(np.arange(IMAGES)))


def test_a_collapsed_proxy_is_reported_before_a_subset_is_cut(scoring, pool):
    done = scoring(Proxies())
    figures = done.facts["diagnosis"]
    assert figures["rank_direction"] == pytest.approx(1) and figures["target_mean_length"] == pytest.approx(1)
    assert figures["images"] == IMAGES and abs(figures["rank_brightness"]) < 0.2
    assert done.facts["meaning"] == done.tagged["score_meaning"] == "direction"
    [warning] = done.facts["warnings"]
    assert warning.startswith("CFS: the score is the projection of θs on one direction")
    assert done.tagged["warning"] == warning and done.printed.count(warning) == 1
    printed, run = io.StringIO(), RecordedRun()
    subset = select.plan(pool, done.artifact, Select(fraction=0.2), 0, None)
    subset.path.mkdir(parents=True)
    facts = subset.job(StageContext(subset, subset.path, run, Screen(Console(file=printed, width=1000))))
    assert warning in printed.getvalue()
    assert facts["meaning"] == run.tagged["score_meaning"] == "direction"


def test_known_origins_show_that_a_high_score_means_distance(scoring):
    far = Provenance(lambda: NEAR, "far")
    done = scoring(Proxies(), provenance=far)
    assert done.facts["meaning"] == "direction, inverted" and done.facts["auc"] == 0.0
    assert "AUC 0.000" in done.facts["warnings"][1]
    assert done.printed.count("AUC 0.000") == 1  # told after the sample, and not again
    later = score_meaning.meaning_of(
        done.artifact, select.separation_of(done.artifact, Provenance(lambda: NEAR, "near"))
    )
    assert later.word == "direction"


def test_scores_of_an_earlier_version_have_no_meaning(scoring):
    done = scoring(Proxies())
    new = ("diagnosis", "meaning", "warnings")
    (done.artifact.path / "artifact.json").unlink()  # a finished artifact is never finished again
    done.artifact.finish({name: value for name, value in done.facts.items() if name not in new})
    assert score_meaning.meaning_of(done.artifact, None) is None
    printed = io.StringIO()
    score_meaning.show(Screen(Console(file=printed, width=200)), done.artifact, None, again=True)
    assert "made by a version" in printed.getvalue()


def test_the_store_of_a_target_is_no_part_of_the_identity(pool):
    store = Artifact(pool.root, "ingest", 1, {"name": "target"})
    proxy = Artifact(pool.root, "proxy", 1, {})
    with_store = score.plan(pool, proxy, {"": proxy}, Score(), None, {"": store})
    assert with_store.auxiliary == {"target_images": store}
    assert with_store.id == score.plan(pool, proxy, {"": proxy}, Score(), None).id


def test_the_kept_features_give_the_scores(tmp_path):
    paths = scoring_parts.write_proxies(tmp_path / "proxies")
    rng = np.random.default_rng(0)
    images = ImageBatch.collate([rng.integers(0, 256, (32, 16, 3), np.uint8) for _ in range(4)])
    keys = list("abcd")
    build = partial(score._Head, paths[0], {"": paths[1]}, "fp32", False, torch.device("cpu"))
    scores, kept = build()(images, keys), build(keep=True)(images, keys)
    np.testing.assert_array_equal(kept[:, :1], scores)
    np.testing.assert_allclose(kept[:, 1], 1e-5)
    naive = [images.image(n).double().mean() / 255 for n in range(4)]
    np.testing.assert_allclose(kept[:, 2], naive, rtol=1e-5)
    source, target = np.split(kept[:, 3:], 2, axis=1)
    np.testing.assert_allclose(np.linalg.norm(source, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((source * target).sum(axis=1), scores[:, 0], atol=1e-6)


# What is judged and drawn


def test_sheets_show_both_ends_and_the_middle():
    scores = np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.7])
    shown = score.extremes(scores, 2)
    assert {name: rows.tolist() for name, rows in shown.items()} == {
        "highest": [3, 5],
        "median": [5, 0],
        "lowest": [2, 4],
    }
    assert all(sorted(rows) == [0, 2, 3, 4, 5] for rows in map(np.ndarray.tolist, score.extremes(scores, 9).values()))


NEAR = pa.table({"key": [f"{n:02d}.jpg" for n in range(IMAGES)], "origin": ["far"] * 20 + ["near"] * 10})


def test_a_provenance_that_comes_after_the_scoring_counts(scoring):
    scores = scoring(Proxies(broken=[4])).artifact
    assert "auc" not in scores.facts
    assert select.separation_of(scores, None) is None
    assert select.separation_of(scores, Provenance(lambda: NEAR, "near")).auc == 1.0
    assert select.separation_of(scores, Provenance(lambda: NEAR, "far")).auc == 0.0
    assert select.separation_of(scores, Provenance(lambda: NEAR.slice(0, 20), "far")) is None  # of all known images
    assert select.separation_of(scores, Provenance(lambda: NEAR, "elsewhere")) is None


def kept(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_cut_is_drawn_by_the_selection_and_is_its_own(scoring, pool):
    made = scoring(Proxies(), sheets=True)
    assert kept(made.figures["figures/cfs_histogram.png"]) == []
    subset = select.plan(pool, made.artifact, Select(fraction=0.2), 0, Provenance(lambda: NEAR, "near"))
    subset.path.mkdir(parents=True)
    run = RecordedRun()
    facts = subset.job(StageContext(subset, subset.path, run, Screen(Console(file=io.StringIO()))))
    assert facts["images"] == 6 and facts["share.near"] == 1.0
    [text] = kept(run.drawn["figures/cfs_histogram.png"])
    assert "20 % kept" in text and "0.800" in text


def test_a_random_selection_has_no_cut_to_draw(pool):
    subset = select.plan(pool, None, Select(strategy="random", fraction=0.2), 0, None)
    subset.path.mkdir(parents=True)
    run = RecordedRun()
    subset.job(StageContext(subset, subset.path, run, Screen(Console(file=io.StringIO()))))
    assert run.figures == []


def test_images_that_cannot_be_decoded_stay_listed_after_a_loss_of_power(tmp_path):
    with disturbed(Disk(tmp_path)) as disk:
        listed = shard_results.Undecodable(tmp_path / "undecodable.tsv")
        listed.add({"a.png": "truncated"})
        listed.add({"a.png": "truncated", "b.png": "zero-size"})
        left = [disk.left(loss) for loss in LOSSES.values()]
    assert left == [{"undecodable.tsv": b"a.png\ttruncated\nb.png\tzero-size\n"}] * len(LOSSES)
