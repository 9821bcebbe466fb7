"""Blind quality is that of its paper, and worse the worse a picture is, whatever good pictures it was fitted on."""

import random

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.ndimage import correlate
from scipy.optimize import brentq
from scipy.special import gamma

from firered_lit.curation.niqe import (
    FEATURES,
    NIQE,
    OURS,
    asymmetric_fit,
    distance,
    fit_niqe,
    patch_features,
    read_fitted,
)
from firered_lit.curation.rows import Picture
from firered_lit.errors import UserError


@pytest.fixture(scope="module")
def benchmark(root):
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(root / "benchmarks"))
    import defects
    import fit_niqe

    yield defects, fit_niqe
    patch.undo()


@pytest.fixture(scope="module")
def photos(benchmark):
    return benchmark[0].photographs()


def slow_fit(values):
    """Shape and scales of an asymmetric generalised Gaussian, from the moments as the paper has them."""
    left = np.sqrt((values[values < 0] ** 2).mean())
    right = np.sqrt((values[values > 0] ** 2).mean())
    skew = left / right
    wanted = np.abs(values).mean() ** 2 / (values**2).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = brentq(lambda a: gamma(2 / a) ** 2 / gamma(1 / a) / gamma(3 / a) - wanted, 0.2, 10)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def slow_features(grey, top, left, size):
    """The 18 features of one patch, neighbour by neighbour."""
    place = np.arange(7) - 3
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = correlate(grey, window, mode="nearest")
    deviation = np.sqrt(np.abs(correlate(grey**2, window, mode="nearest") - mean**2))
    patch = ((grey - mean) / (deviation + 1))[top : top + size, left : left + size]
    shape, below, above = slow_fit(patch.ravel())
    found = [shape, (below + above) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        products = [
            patch[y, x] * patch[(y - down) % size, (x - across) % size] for y in range(size) for x in range(size)
        ]
        shape, below, above = slow_fit(np.array(products))
        found += [shape, (above - below) * gamma(2 / shape) / gamma(1 / shape), below, above]
    return found


def test_features_are_those_of_the_slow_formulas(photos):
    grey = cv2.cvtColor(photos[0], cv2.COLOR_RGB2GRAY)[100 : 100 + 200, 300 : 300 + 290]
    found, sharpness = patch_features(grey)
    assert found.shape == (6, FEATURES)
    assert sharpness.shape == (6,)
    used = grey[:192, :288].astype(float)
    halved = used.reshape(96, 2, 144, 2).mean((1, 3))
    for number, (top, left) in enumerate([(0, 0), (0, 96), (0, 192), (96, 0)]):
        expected = slow_features(used, top, left, 96) + slow_features(halved, top // 2, left // 2, 48)
        assert found[number] == pytest.approx(expected, abs=1.5e-3)


@pytest.mark.parametrize(
    ("shape", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 0.5, 2.0), (0.7, 1.5, 0.8), (4.0, 1.0, 3.0)]
)
def test_a_fit_finds_the_distribution_that_values_are_drawn_from(shape, left, right):
    rng = np.random.default_rng(0)
    count = 400_000
    sizes = rng.gamma(1 / shape, size=count) ** (1 / shape)
    below = rng.random(count) < left / (left + right)
    values = np.where(below, -left * sizes, right * sizes).astype(np.float32)
    found = [value[0] for value in asymmetric_fit(values.reshape(1, 400, 1000))]
    assert found == pytest.approx([shape, left, right], rel=0.02)


def test_distances_grow_with_blur_noise_and_compression(benchmark, photos):
    defects, fitting = benchmark
    rng = random.Random(9)
    fitted = fit_niqe([defects.crop(photo, rng) for photo in photos for _ in range(12)])
    found = [fitting.measured(photo, *fitted) for photo in photos]
    for kind in ("blurred", "noisy", "compressed"):
        means = np.mean([one["clean"] + one[kind] for one in found], axis=0)
        assert means.tolist() == sorted(means), kind
        assert all(min(one[kind]) > one["clean"][0] for one in found), kind


def test_ours_tells_clean_crops_from_defective_ones(benchmark, photos):
    defects, _ = benchmark
    rng = random.Random(1)
    annotator = NIQE()
    worse = 0
    for number in range(9):
        crop = defects.crop(photos[number % 3], rng)
        change = (defects.blurred, defects.noisy, defects.over_compressed)[number // 3]
        clean, defective = annotator.annotate([Picture(crop), Picture(change(crop.copy(), rng))])["distance"]
        worse += defective > clean + 1
    assert worse == 9


def test_the_distance_is_that_of_its_formula():
    rng = np.random.default_rng(3)
    grey = cv2.GaussianBlur(rng.integers(0, 256, (300, 400), dtype=np.uint8), (0, 0), 1.5)
    found, _ = patch_features(grey)
    spread = rng.normal(size=(FEATURES, FEATURES))
    mean, covariance = rng.normal(size=FEATURES), spread @ spread.T + np.eye(FEATURES)
    apart = found.mean(0) - mean
    expected = np.sqrt(apart @ np.linalg.solve((np.cov(found.T) + covariance) / 2, apart))
    assert distance(grey, mean, covariance) == pytest.approx(expected, rel=1e-6)
    assert distance(grey, found.mean(0), covariance) == pytest.approx(0, abs=1e-6)


def test_pictures_too_small_or_of_one_colour_have_no_distance(photos):
    flat = np.full((300, 300, 3), 9, np.uint8)
    half = photos[0][:384, :384].copy()
    half[:192] = 255
    found = NIQE().annotate([Picture(flat), Picture(photos[0][:191, :400]), Picture(half)])["distance"]
    assert found[:2] == [None, None]
    assert np.isfinite(found[2])


def test_large_pictures_are_measured_at_one_size(photos):
    large = cv2.resize(photos[0], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(large, (1024, 683), interpolation=cv2.INTER_AREA)
    found = NIQE().annotate([Picture(large), Picture(small)])["distance"]
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_a_fit_is_written_and_read_and_part_of_what_columns_are_made_by(benchmark, photos, tmp_path):
    rng = random.Random(0)
    path = tmp_path / "fit.safetensors"
    mean, covariance = fit_niqe([benchmark[0].crop(photo, rng) for photo in photos * 6], path)
    for one, other in zip(read_fitted(path), (mean, covariance)):
        assert np.array_equal(one, other)
    assert NIQE(str(path)).fitted != NIQE().fitted
    assert np.linalg.eigvalsh(read_fitted(OURS)[1]).min() > 0


def test_a_fit_is_of_sharp_patches_alone(photos):
    """The left half is sharp, the right one blurred, and nothing changes in the patches above."""
    sharp = np.random.default_rng(0).integers(0, 256, (576, 768), np.uint8)
    picture = np.concatenate([sharp, cv2.GaussianBlur(sharp, (0, 0), 4)], axis=1)[:, :1536]
    picture = np.concatenate([np.full((192, 1536), 128, np.uint8), picture])[:, 384:1344]
    found, _ = patch_features(picture)
    assert 60 <= len(found) <= 70, "of 80 patches, none of the ten in which nothing changes"
    expected = found[-60:].reshape(6, 10, FEATURES)[:, :4].reshape(24, FEATURES)
    mean, _ = fit_niqe([picture, picture])
    assert mean == pytest.approx(expected.mean(0), rel=1e-9)


def test_what_is_no_fit_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match=r"have \d+ sharp patches of 96 px; more than 36 are needed"):
        fit_niqe([photos[0]])
    with pytest.raises(UserError, match="have 0 sharp patches"):
        fit_niqe([])
    save_file({"mean": np.zeros(18)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="expected mean"):
        NIQE(str(tmp_path / "other.safetensors"))
    endless = {"mean": np.full(FEATURES, np.inf), "covariance": np.eye(FEATURES)}
    save_file(endless, tmp_path / "endless.safetensors")
    with pytest.raises(UserError, match="numbers that are not finite"):
        NIQE(str(tmp_path / "endless.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(OURS.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        NIQE(str(tmp_path / "cut.safetensors"))
