"""Scores of features made by hand, their intervals, and the cache of features."""

import numpy as np
import pytest
from etils import epath

from imagen_booth.distributed import sharding
from imagen_booth.evaluation import features, preprocess, scores
from imagen_booth.evaluation.preprocess import Preprocessing
from imagen_booth.weights.load import Part

X, Y, Z = np.eye(3)


def at(degrees):
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def test_fidelity_is_the_mean_over_photos():
    pictures = np.stack([at(0), 7 * at(60), at(180)])  # lengths do not matter
    photos = np.stack([2 * at(0), at(90)])
    half, root = 0.5, np.sqrt(3) / 2
    expected = [(1 + 0) / 2, (half + root) / 2, (-1 + 0) / 2]
    np.testing.assert_allclose(scores.fidelity(pictures, photos), expected, atol=1e-12)


def test_prompt_fidelity_is_row_by_row():
    found = scores.prompt_fidelity(np.stack([X, 3 * Y, Z]), np.stack([5 * X, X, Y + Z]))
    np.testing.assert_allclose(found, [1, 0, np.sqrt(0.5)], atol=1e-12)


def test_diversity_is_over_different_pairs():
    distances = np.array([[9, 1, 2], [1, 9, 6], [2, 6, 9]], np.float32)
    assert scores.diversity(distances) == pytest.approx(3)


def test_agreement_leaves_out_a_photo_with_itself():
    assert scores.among(np.stack([X, Y])).mean() == pytest.approx(0)
    photos = np.stack([at(0), at(60), at(120)])
    assert scores.among(photos).mean() == pytest.approx((0.5 + 0.5 - 0.5) / 3)


def test_single_precision_features_are_summed_in_double():
    features = np.full((4, 384), 0.1, np.float32)
    found = scores.fidelity(features, features)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, 1, atol=1e-12)


def test_groups_weigh_the_same():
    found = scores.summarise([[0.0] * 9, [1.0]])
    assert (found.mean, found.groups, found.values) == (0.5, 2, 10)
    assert (found.low, found.high) == (0.0, 1.0)  # a quarter of draws at either end


def test_equal_values_have_no_interval():
    found = scores.summarise([[0.25, 0.25, 0.25]])
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)


def test_the_seed_decides_the_interval():
    values = [np.random.default_rng(0).normal(size=12)]
    assert scores.summarise(values, 3) == scores.summarise(values, 3)
    assert scores.summarise(values, 3) != scores.summarise(values, 4)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_interval_covers_the_truth(grouped):
    """Of 300 samples of 30 units, 95 % of the intervals should hold the true mean.

    Grouped, the values of a unit agree, so that counting values as units would give
    intervals three times too narrow.
    """
    rng = np.random.default_rng(1)
    hits, widths = 0, []
    for seed in range(300):
        units = rng.normal(0.5, 1.0, 30)
        groups = [np.full(9, unit) for unit in units] if grouped else [units]
        found = scores.summarise(groups, seed)
        hits += found.low <= 0.5 <= found.high
        widths.append(found.high - found.low)
    assert 0.90 <= hits / 300 <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(30), rel=0.1)


NAME = "dino_vits16"


def network(calls, fingerprint="a"):
    """Mean colour as the feature, counting the batches it is asked for."""

    def apply(params, pixels):
        calls.append(pixels.shape)
        return pixels.mean((1, 2)) * params["scale"]

    params = {"scale": np.float32(2)}
    return Part(apply, params, NAME, "here", fingerprint, "none", pretrained=False)


@pytest.fixture
def recipe(monkeypatch):
    small = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    monkeypatch.setitem(preprocess.RECIPES, NAME, small)
    return small


def flat(level, side=8):
    return np.full((side, side, 3), level, np.uint8)


def test_features_are_computed_once(tmp_path, recipe):
    mesh, calls, cache = sharding.make_mesh(), [], epath.Path(tmp_path)
    pictures = [flat(level) for level in (0, 51, 102, 51, 255)]

    def look(images, part):
        return features.of_images(part, images, cache=cache, mesh=mesh)

    levels = np.array([0, 0.4, 0.8, 0.4, 2.0], np.float32)
    expected = np.repeat(levels[:, None], 3, 1)
    first = look(iter(pictures), network(calls))
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    assert calls == [(16, 8, 8, 3)]  # filled up to a batch
    np.testing.assert_array_equal(look(pictures[::-1], network(calls)), first[::-1])
    assert len(calls) == 1
    look([*pictures, flat(7)], network(calls))
    assert len(calls) == 2
    # another size of the same colour, other weights: nothing of theirs is kept
    look([flat(51, 9)], network(calls))
    look(pictures, network(calls, fingerprint="b"))
    assert len(calls) == 4


def test_features_know_their_preparation(tmp_path, recipe, monkeypatch):
    mesh, calls = sharding.make_mesh(), []
    for mean in (0.0, 0.5):
        other = Preprocessing(8, 8, (mean, 0.0, 0.0), (1.0, 1.0, 1.0))
        monkeypatch.setitem(preprocess.RECIPES, NAME, other)
        found = features.of_images(
            network(calls), [flat(255)], cache=epath.Path(tmp_path), mesh=mesh
        )
        np.testing.assert_allclose(found, [[2 - 2 * mean, 2, 2]], rtol=1e-6)
    assert len(calls) == 2


def test_more_pictures_than_a_batch(tmp_path, recipe):
    calls = []
    found = features.of_images(
        network(calls),
        (flat(level) for level in range(40)),
        cache=epath.Path(tmp_path),
        mesh=sharding.make_mesh(),
    )
    assert calls == [(16, 8, 8, 3)] * 3
    np.testing.assert_allclose(found[:, 0], 2 * np.arange(40) / 255, rtol=1e-5)


def test_distances_are_kept_by_group(tmp_path, monkeypatch):
    small = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    monkeypatch.setitem(preprocess.RECIPES, "lpips_alex", small)
    calls = []

    def apply(params, pixels):
        calls.append(len(pixels))
        means = pixels.mean((1, 2, 3))
        return np.abs(means[:, None] - means[None])

    part = Part(apply, {}, "lpips_alex", "here", "a", "none", pretrained=False)
    group = [flat(level) for level in (0, 51, 255)]

    def look(pictures):
        return features.distances(part, pictures, cache=epath.Path(tmp_path))

    expected = [[0, 0.2, 1], [0.2, 0, 0.8], [1, 0.8, 0]]
    np.testing.assert_allclose(look(group), expected, atol=1e-6)
    np.testing.assert_allclose(look(group), expected, atol=1e-6)
    assert calls == [3]
    assert scores.diversity(look(group[::-1])) == pytest.approx(2 / 3)
    assert calls == [3, 3]
