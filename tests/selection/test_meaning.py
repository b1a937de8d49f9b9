"""What a score means, on features that are made for each regime."""

import json

import numpy as np
import pytest

from rayreid.selection.meaning import (
    INVERTED_AUC,
    ROUNDING,
    Diagnosis,
    Regime,
    Separation,
    diagnose,
    interpret,
)

IMAGES, DIMENSIONS = 1000, 16


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def sizes(rng):
    return {"heights": rng.integers(100, 300, IMAGES), "widths": rng.integers(50, 150, IMAGES)}


@pytest.fixture
def source(rng):
    return unit(rng.standard_normal((IMAGES, DIMENSIONS)) + 0.5)


def test_a_theta_t_that_keeps_what_theta_s_knew_has_no_peculiarity(rng, source, sizes):
    target = unit(source + 0.3 * rng.standard_normal(source.shape) * rng.random((IMAGES, 1)))
    found = diagnose((source * target).sum(1), 1e-5, source=source, targets=[target], brightness=source[:, 0], **sizes)
    assert interpret(found).word == "usual" and interpret(found).reasons == {}
    assert found.images == IMAGES and abs(found.rank_direction) < 0.6


def test_a_collapsed_theta_t_makes_the_score_a_direction(rng, source, sizes):
    one_way = rng.standard_normal(DIMENSIONS)
    target = unit(one_way + 0.02 * rng.standard_normal(source.shape))
    scores = (source * target).sum(1)
    found = diagnose(scores, 1e-5, source=source, targets=[target], **sizes)
    assert found.rank_direction > 0.99 and found.target_mean_length > 0.99
    assert found.source_mean_length == pytest.approx(np.linalg.norm(source.mean(0)))
    meaning = interpret(found)
    assert meaning.word == "direction"
    assert "one direction" in meaning.reasons[Regime.DIRECTION]
    assert f"length {found.target_mean_length:.3f}" in meaning.reasons[Regime.DIRECTION]


def test_the_direction_of_several_targets_is_that_of_their_mean_score(rng, source, sizes):
    targets = [unit(way + 0.02 * rng.standard_normal(source.shape)) for way in rng.standard_normal((2, DIMENSIONS))]
    scores = np.mean([(source * target).sum(1) for target in targets], axis=0)
    found = diagnose(scores, 1e-5, source=source, targets=targets, **sizes)
    assert found.rank_direction > 0.99
    lengths = [np.linalg.norm(target.mean(0)) for target in targets]
    assert found.target_mean_length == pytest.approx(np.mean(lengths))


@pytest.mark.parametrize("sign", [1, -1])
def test_brightness_is_found_whichever_end_is_bright(rng, sizes, sign):
    brightness = rng.random(IMAGES)
    scores = 0.9 + 0.05 * sign * brightness + 0.005 * rng.standard_normal(IMAGES)
    found = diagnose(scores, 1e-5, brightness=brightness, **sizes)
    assert sign * found.rank_brightness > 0.9
    assert interpret(found).word == "brightness"
    assert f"{found.rank_brightness:.2f}" in interpret(found).reasons[Regime.BRIGHTNESS]


@pytest.mark.parametrize(("named", "power"), [("height", 0), ("area", 1)])
def test_size_is_found_as_height_or_as_area(rng, sizes, named, power):
    values = sizes["heights"] * sizes["widths"].astype(float) ** power
    found = diagnose(values / values.max() + 0.01 * rng.standard_normal(IMAGES), 1e-5, **sizes)
    meaning = interpret(found)
    assert meaning.word == "size" and f"the {named} of" in meaning.reasons[Regime.SIZE]


def test_images_of_one_size_have_no_correlation_with_it(rng):
    same = np.full(IMAGES, 64)
    found = diagnose(rng.random(IMAGES), 1e-5, heights=same, widths=same)
    assert found.rank_height is None and "rank_area" not in found.figures()
    assert interpret(found).word == "usual"


def test_scores_within_rounding_are_narrow(rng, sizes):
    scores = 0.999 + 0.002 * rng.standard_normal(IMAGES)
    assert interpret(diagnose(scores, ROUNDING["bf16"], **sizes)).word == "narrow"
    assert interpret(diagnose(scores, ROUNDING["fp32"], **sizes)).word == "usual"


def test_scores_against_the_similarity_mean_distance(rng, sizes):
    similarity = rng.random(IMAGES)
    scores = -0.1 * similarity + 0.1 * rng.random(IMAGES)
    found = diagnose(scores, 1e-5, similarity=similarity, **sizes)
    assert interpret(found).word == "inverted"
    assert "a high score means distance here" in interpret(found).reasons[Regime.INVERTED]
    assert interpret(diagnose(-scores, 1e-5, similarity=similarity, **sizes)).word == "usual"


def test_known_origins_decide_instead_of_the_similarity(rng, sizes):
    similarity = rng.random(IMAGES)
    found = diagnose(-similarity, 1e-5, similarity=similarity, **sizes)
    assert interpret(found).word == "inverted"
    assert interpret(found, Separation(0.7, 300, 700)).word == "usual"
    against = diagnose(similarity, 1e-5, similarity=similarity, **sizes)
    meaning = interpret(against, Separation(0.394, 300, 700))
    assert meaning.word == "inverted" and "AUC 0.394" in meaning.reasons[Regime.INVERTED]
    assert interpret(against, Separation(INVERTED_AUC, 300, 700)).word == "usual"


def test_few_images_do_not_show_an_inversion(rng):
    assert interpret(_figures(10, -0.3)).word == "usual"
    assert interpret(_figures(1000, -0.3)).word == "inverted"
    assert interpret(_figures(1000, None), Separation(0.4, 5, 5)).word == "usual"


def _figures(images: int, similarity: float | None) -> Diagnosis:
    return Diagnosis(images, 0.5, 0.1, 1e-5, rank_similarity=similarity)


def test_several_regimes_are_all_named(rng, source, sizes):
    way = rng.standard_normal(DIMENSIONS)
    target = unit(way + 0.02 * rng.standard_normal(source.shape))
    scores = (source * target).sum(1)
    found = diagnose(scores, 1e-5, source=source, targets=[target], brightness=scores, similarity=-scores, **sizes)
    assert interpret(found).word == "direction, inverted, brightness"


def test_figures_survive_a_file_of_facts(rng, source, sizes):
    found = diagnose(rng.random(IMAGES).astype(np.float32), 1e-5, source=source.astype(np.float32), **sizes)
    assert Diagnosis(**json.loads(json.dumps(found.figures()))) == found
