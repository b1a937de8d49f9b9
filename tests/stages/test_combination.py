"""Several strategies combined into one priority; without a cluster of machines."""

import io

import numpy as np
import pytest
from scipy.stats import rankdata

from known_features import IMAGES, work_on
from rayreid.config import Select
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.selection.subset_file import subset_rows
from rayreid.stages import combination, priority, select

pytestmark = pytest.mark.usefixtures("worked_here")
PARTS = [{"strategy": "target_similarity"}, {"strategy": "cluster", "clusters": 5, "weight": 0.5}]


def combined(made, parts, seed=0, fraction=0.25):
    config = Select(strategy="combine", fraction=fraction, parts=parts)
    planned = []
    for part in config.parts:
        alone = part.strategy in ("random", "list")
        ranked = priority.plan(made.pool, made.found, {"": (made.target, made.theirs)}, part, seed, None)
        planned.append((part, None if alone else work_on(ranked) if not ranked.complete else ranked))
    found = None if all(ranked is None for _, ranked in planned) else made.found
    return config, combination.plan(made.pool, planned, found, seed, None)


def values(artifact):
    return priority.read_priority(artifact.path)["priority"].to_numpy()


def test_its_priorities_are_the_weighted_mean_of_ranks(known):
    made = known(2)
    _, ranked = combined(made, PARTS)
    work_on(ranked)
    parts = [values(ranked.inputs[f"part.{name}"]) for name in ("1_target_similarity", "2_cluster")]
    usable = np.isfinite(parts[0])
    likeness, even = ((rankdata(part[usable]) - 1) / (usable.sum() - 1) for part in parts)
    np.testing.assert_allclose(values(ranked)[usable], (likeness + 0.5 * even) / 1.5)
    assert np.isnan(values(ranked)[7]) and ranked.facts["without"] == 1
    assert ranked.facts["removed_by_1_target_similarity"] == 1 and ranked.facts["removed_by_2_cluster"] == 0


def test_a_subset_is_cut_by_them_and_knows_its_largest_cluster(known):
    made, said = known(2), io.StringIO()
    config, ranked = combined(made, PARTS)
    work_on(ranked)
    subset = work_on(select.plan(made.pool, ranked, config, 0, None), said)
    rows = subset_rows(ImageStore(made.pool.path), subset.path)
    assert len(rows) == 15 and values(ranked)[rows].min() >= np.nanmax(np.delete(values(ranked), rows))
    clusters = priority.read_groups(ranked.path, "cluster")
    assert subset.facts["largest_cluster"] == np.bincount(clusters[rows]).max() / 15
    assert clusters[7] == -1 and "warning" not in said.getvalue()


def test_a_cluster_that_wins_everything_is_told(known, monkeypatch):
    made, said = known(1), io.StringIO()
    config, ranked = combined(made, PARTS, fraction=0.1)
    clusters = np.zeros(IMAGES, np.int32)
    clusters[10:14] = 1
    monkeypatch.setattr(combination, "pool_clusters", lambda *_: clusters)
    monkeypatch.setattr(combination, "combine", lambda parts, images: ((clusters == 1) + np.arange(IMAGES) / 1e3, {}))
    work_on(ranked)
    subset = work_on(select.plan(made.pool, ranked, config, 0, None), said)
    assert "one cluster has 7% of the pool and gives 67% of the subset" in said.getvalue()
    assert subset.facts["largest_cluster"] == pytest.approx(4 / 6)


def test_strategies_without_an_artifact_are_ranked_with_it(known, tmp_path):
    made = known(1)
    (tmp_path / "list.txt").write_text("\n".join(f"p{number:02d}.jpg" for number in range(20, 50)))
    listed = {"strategy": "list", "list": str(tmp_path / "list.txt"), "weight": 0}
    _, ranked = combined(made, [listed, {"strategy": "random"}])
    work_on(ranked)
    assert set(np.flatnonzero(np.isfinite(values(ranked)))) == set(range(20, 50))
    assert ranked.facts["removed_by_1_list"] == 30
    assert priority.read_groups(ranked.path, "cluster") is None


def test_near_duplicates_are_thinned_out_among_the_images_that_are_left(known, tmp_path):
    made = known(1)
    (tmp_path / "list.txt").write_text("\n".join(f"p{number:02d}.jpg" for number in range(20, 50)))
    listed = {"strategy": "list", "list": str(tmp_path / "list.txt"), "weight": 0}
    thinned = {"strategy": "dedup", "keep": 1, "weight": 0}
    _, first = combined(made, [thinned, listed, {"strategy": "cluster"}])
    with pytest.raises(UserError, match="leave none"):  # all images have the same bytes, and 0 is the first
        work_on(first)
    _, last = combined(made, [listed, thinned, {"strategy": "cluster"}])
    work_on(last)
    assert np.flatnonzero(np.isfinite(values(last))).tolist() == [20]


def test_everything_that_changes_it_is_part_of_its_id(known, tmp_path):
    made = known(1)
    (tmp_path / "list.txt").write_text("\n".join(f"p{number:02d}.jpg" for number in range(20, 50)))
    listed = {"strategy": "list", "list": str(tmp_path / "list.txt")}
    ids = [combined(made, parts)[1].id for parts in (PARTS, PARTS[::-1], [{**PARTS[0], "weight": 2}, PARTS[1]])]
    ids += [combined(made, [*PARTS[:1], {**PARTS[1], "clusters": 6}])[1].id, combined(made, PARTS, seed=1)[1].id]
    ids.append(combined(made, [listed])[1].id)
    (tmp_path / "list.txt").write_text("\n".join(f"p{number:02d}.jpg" for number in range(21, 50)))
    ids.append(combined(made, [listed])[1].id)
    assert len(set(ids)) == len(ids)
    assert combined(made, PARTS)[1].id == ids[0]
