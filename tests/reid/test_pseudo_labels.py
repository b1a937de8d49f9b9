"""Pseudo labels from epoch to epoch: what is found, what is kept where that is of no use, what lies on the disk."""

import numpy as np
import pytest
import torch

from rayreid.errors import UserError
from rayreid.reid.clustering import OUTLIER
from rayreid.reid.pseudo_labels import Clustering, PseudoLabels, clusters_of

PEOPLE, EACH = 5, 8
IMAGES = PEOPLE * EACH
ROWS = 3 + np.arange(IMAGES) * 2
PIDS = np.arange(IMAGES) // EACH


def features():
    """Points that lie close together by eights."""
    generator = torch.Generator().manual_seed(0)
    return torch.eye(16)[PIDS] + 0.001 * torch.randn(IMAGES, 16, generator=generator)


def clustered(labels):
    """A clustering that finds these labels, whatever it is shown."""
    return lambda points: (clusters_of(np.array(labels)), {"neighbour_recall": 1.0})


NONE, ONE = [OUTLIER] * IMAGES, [0] * (IMAGES - 3) + [OUTLIER] * 3
TWO, FOUR = list(np.arange(IMAGES) // 20), list(np.arange(IMAGES) // 10)


def labels_in(folder, found=None):
    clustering = Clustering(k1=EACH + 2, k2=2, eps=0.5) if found is None else clustered(found)
    return PseudoLabels(folder, ROWS, PIDS, clustering, needed=3)


def test_labels_are_found_judged_and_written(tmp_path):
    made = labels_in(tmp_path / "labels")
    row = made.find(1, features())
    assert len(made.clusters) == PEOPLE and made.found_in == 1
    assert (row["clusters"], row["outliers"], row["images_used"]) == (PEOPLE, 0, IMAGES)
    assert row["ari"] == row["nmi"] == row["pair_f"] == 1
    assert row["kept_labels"] == 0 and row["neighbour_recall"] == 1
    assert row["seconds_neighbours"] > 0 and row["seconds_cluster"] > 0
    with np.load(tmp_path / "labels" / "0001.npz") as file:
        np.testing.assert_array_equal(file["rows"], ROWS)
        np.testing.assert_array_equal(file["labels"], made.clusters.labels)
        assert file["found_in"] == 1


def test_a_later_process_takes_up_what_lies_there(tmp_path):
    made, later = labels_in(tmp_path), labels_in(tmp_path)
    made.find(1, features())
    later.take_up(1)
    np.testing.assert_array_equal(later.clusters.labels, made.clusters.labels)
    np.testing.assert_array_equal(later.clusters.sizes, made.clusters.sizes)


def test_labels_that_are_not_there_torn_or_of_other_images(tmp_path):
    made = labels_in(tmp_path)
    made.find(1, features())
    with pytest.raises(UserError, match=r"0002\.npz.*missing"):
        made.take_up(2)
    whole = (tmp_path / "0001.npz").read_bytes()
    (tmp_path / "0003.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"0003\.npz.*damaged"):
        made.take_up(3)
    made.rows = made.rows + 1
    with pytest.raises(UserError, match="other images"):
        made.take_up(1)


UNUSABLE = [
    (NONE, r"no cluster among 40 images; a larger adapt\.eps"),
    (ONE, r"one cluster alone, of 37 of 40 images; a smaller adapt\.eps"),
    (TWO, r"2 clusters among 40 images \(0 outliers\), and a batch takes adapt\.clusters=3; lower that"),
]


@pytest.mark.parametrize(("labels", "message"), UNUSABLE, ids=["none", "one", "two"])
def test_a_first_epoch_without_clusters_to_use_is_refused(tmp_path, labels, message):
    with pytest.raises(UserError, match=f"no pseudo labels to begin with: {message}"):
        labels_in(tmp_path, labels).find(1, features())
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("labels", [case[0] for case in UNUSABLE], ids=["none", "one", "two"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_later_one_keeps_the_last_labels_and_says_so(tmp_path, labels, resumed):
    made = labels_in(tmp_path, FOUR)
    made.find(1, features())
    if resumed:
        made = labels_in(tmp_path)
    made.clustering = clustered(labels)
    for epoch in (2, 3):
        row = made.find(epoch, features())
        assert row["kept_labels"] == 1 and row["clusters"] == len(set(labels) - {OUTLIER})
        assert made.clusters.labels.tolist() == FOUR
        with np.load(tmp_path / f"{epoch:04d}.npz") as file:
            assert file["labels"].tolist() == FOUR
            assert file["found_in"] == 1
    made.clustering = clustered(PIDS)
    assert made.find(4, features())["kept_labels"] == 0 and len(made.clusters) == PEOPLE and made.found_in == 4


def test_outliers_stay_outliers(tmp_path):
    some = [*PIDS[:-3], *[OUTLIER] * 3]
    row = labels_in(tmp_path, some).find(1, features())
    assert row["outliers"] == 3 and row["images_used"] == IMAGES - 3 and row["pair_recall"] < 1
    later = labels_in(tmp_path)
    later.take_up(1)
    assert later.clusters.labels.tolist() == some and later.clusters.sizes.tolist() == [8, 8, 8, 8, 5]


def test_features_that_are_broken_are_no_matter_of_labels(tmp_path):
    made = labels_in(tmp_path)
    made.find(1, features())
    with pytest.raises(UserError, match=r"pseudo labels of epoch 2: .*NaN"):
        made.find(2, features() * torch.nan)


def test_only_worker_0_writes_and_tells(tmp_path, monkeypatch):
    made = labels_in(tmp_path)
    expected = torch.from_numpy(np.arange(IMAGES) // 10)
    monkeypatch.setattr("rayreid.training.parallel.rank", lambda: 1)
    monkeypatch.setattr("rayreid.training.parallel.broadcast", lambda tensor: tensor.copy_(expected))
    assert made.find(1, features()) == {}
    np.testing.assert_array_equal(made.clusters.labels, expected)
    assert not list(tmp_path.glob("*.npz"))
