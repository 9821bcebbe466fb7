import math

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions as stock
from hypothesis import given
from hypothesis import strategies as st

from firered_lit.models.sizes import assign, calculate_dimensions, condition_size, crop_box, shape_table

AREAS = [1024 * 1024, 512 * 512, 384 * 384, 256 * 256, 128 * 128]


@given(st.sampled_from(AREAS), st.floats(0.3, 3.5))
def test_dimensions_equal_the_stock_pipelines(area: int, ratio: float) -> None:
    assert calculate_dimensions(area, ratio) == stock(area, ratio)


@pytest.mark.parametrize("area", AREAS)
def test_a_crop_keeps_its_size_through_the_stock_rule(area: int) -> None:
    """The stock pipeline on our crop must not resize it: that is what keeps an edit from drifting or zooming."""
    for height, width in shape_table(area):
        assert stock(area, width / height) == (width, height)
        assert assign(height, width, shape_table(area)) == (height, width)


def test_width_and_height_are_not_swapped() -> None:
    table = shape_table(1024 * 1024)
    assert assign(1080, 1920, table) == (768, 1376)
    assert assign(1920, 1080, table) == (1376, 768)
    assert condition_size(1080, 1920, 384 * 384) == (288, 512)


@given(st.integers(32, 4000), st.integers(32, 4000), st.sampled_from(AREAS))
def test_the_assigned_shape_loses_least(height: int, width: int, area: int) -> None:
    table = shape_table(area)
    chosen = assign(height, width, table)

    def kept(shape: tuple[int, int]) -> float:  # area kept, by the crop's own box
        left, top, right, bottom = crop_box(height, width, shape)
        return (right - left) * (bottom - top) / (height * width)

    assert kept(chosen) == pytest.approx(max(map(kept, table)), abs=1e-6)


@given(st.integers(32, 4000), st.integers(32, 4000), st.sampled_from(AREAS))
def test_a_crop_box_is_centred_inside_and_undistorted(height: int, width: int, area: int) -> None:
    shape = assign(height, width, shape_table(area))
    left, top, right, bottom = crop_box(height, width, shape)
    assert -1e-6 <= left <= right <= width + 1e-6
    assert -1e-6 <= top <= bottom <= height + 1e-6
    assert math.isclose(left, width - right, abs_tol=1e-6)
    assert math.isclose((right - left) / (bottom - top), shape[1] / shape[0], rel_tol=1e-6)
