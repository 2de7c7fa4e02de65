"""A run's series prepared for drawing: gaps, non-finite values, smoothing, increments."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.charts.series import merged, smooth, split
from sae_engine.schema.runs import MetricsSeries, MetricValue


def series_of(steps: list[int], **values: list[MetricValue]) -> MetricsSeries:
    return MetricsSeries(
        step=steps,
        tokens=[s * 100 for s in steps],
        time=[s / 10 for s in steps],
        series=values,
        total_points=len(steps),
        returned_points=len(steps),
    )


def test_unmeasured_values_are_left_out_and_non_finite_ones_break_the_line() -> None:
    points = split([1, 2, 3, 4, 5], [0.5, None, "NaN", 0.25, "Infinity"])
    assert points.x == [1, 3, 4, 5]
    assert points.y == [0.5, None, 0.25, None]
    assert points.broken_x == [3, 5]
    assert points.broken_names == ["NaN", "∞"]


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=40))
def test_smoothing_with_weight_zero_changes_nothing(values: list[float | None]) -> None:
    assert smooth(values, 0) == values


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_smoothing_is_the_weighted_mean_of_earlier_values(
    values: list[float], weight: float
) -> None:
    weights = [weight ** (len(values) - 1 - i) for i in range(len(values))]
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
    assert smooth(values, weight)[-1] == pytest.approx(mean, rel=1e-6, abs=1e-6)


def test_smoothing_restarts_after_a_gap() -> None:
    assert smooth([5.0, None, 1.0], 0.9) == [5.0, None, pytest.approx(1.0)]


def test_increments_replace_the_points_they_overlap() -> None:
    old = series_of([1, 2, 3], fvu=[0.9, 0.8, 0.7])
    new = series_of([3, 4], fvu=[0.65, 0.6], eval_fvu=[0.7, None])
    both = merged(old, new)
    assert both.step == [1, 2, 3, 4]
    assert both.tokens == [100, 200, 300, 400]
    assert both.series == {"fvu": [0.9, 0.8, 0.65, 0.6], "eval_fvu": [None, None, 0.7, None]}
    assert (both.total_points, both.returned_points) == (4, 4)


def test_increments_to_a_decimated_curve_keep_the_count_of_all_points() -> None:
    old = series_of([1, 50, 100], fvu=[1, 2, 3]).model_copy(update={"total_points": 100})
    both = merged(old, series_of([101], fvu=[4]))
    assert (both.total_points, both.returned_points) == (101, 4)


def test_an_empty_increment_changes_nothing() -> None:
    old = series_of([1], fvu=[0.5])
    assert merged(old, series_of([])) is old
    assert merged(None, old) is old
