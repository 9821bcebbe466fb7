import math

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions as stock
from hypothesis import example, given
from hypothesis import strategies as st

from firered_lit.models.sizes import RATIOS, assign, calculate_dimensions, condition_size, crop_box, shape_table

AREAS = [1024 * 1024, 512 * 512, 384 * 384, 256 * 256, 128 * 128]
UNSETTLED = [704 * 704, 832 * 832]  # at which the rule, applied to its own result, gives another one


@given(st.sampled_from(AREAS), st.floats(0.3, 3.5))
def test_dimensions_equal_the_stock_pipelines(area: int, ratio: float) -> None:
    assert calculate_dimensions(area, ratio) == stock(area, ratio)


@given(st.one_of(st.sampled_from([*AREAS, *UNSETTLED]), st.integers(32 * 32, 4096 * 4096)))
@example(704 * 704)
@example(832 * 832)
def test_a_crop_keeps_its_size_through_the_stock_rule(area: int) -> None:
    """The stock pipeline on our crop must not resize it: that is what keeps an edit from drifting or zooming."""
    table = shape_table(area)
    assert 1 <= len(table) <= len(RATIOS)
    for height, width in table:
        assert stock(area, width / height) == (width, height)
        assert assign(height, width, table) == (height, width)


@given(st.integers(256 * 256, 2048 * 2048))
def test_every_ratio_of_the_table_is_near_the_one_it_stands_for(area: int) -> None:
    """A side is at most one step of 32 pixels away from what the rule gives for the ratio itself."""
    firsts = [stock(area, float(ratio)) for ratio in RATIOS]
    for height, width in shape_table(area):
        assert min(max(abs(width - first[0]), abs(height - first[1])) for first in firsts) <= 32


def test_the_shapes_that_old_folders_were_prepared_at_are_still_those() -> None:
    assert shape_table(1024 * 1024) == (
        *((736, 1440), (768, 1376), (832, 1248), (896, 1184), (1024, 1024)),
        *((1184, 896), (1248, 832), (1376, 768), (1440, 736)),
    )
    assert shape_table(512 * 512)[:5] == ((352, 736), (384, 672), (416, 640), (448, 576), (512, 512))


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
