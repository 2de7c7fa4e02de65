"""Curves: gaps, non-finite values, smoothing, increments."""

from __future__ import annotations

import math
import re

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.charts import curves as charts
from frontend.charts.feature import histogram_figure
from sae_engine.schema.features import Histogram
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, MetricValue


def _series(steps: list[int], **values: list[MetricValue]) -> MetricsSeries:
    return MetricsSeries(
        step=steps,
        tokens=[s * 100 for s in steps],
        time=[s / 10 for s in steps],
        series=values,
        total_points=len(steps),
        returned_points=len(steps),
    )


def test_missing_values_are_skipped_and_non_finite_ones_break_the_line() -> None:
    data = charts.split([1, 2, 3, 4, 5], [0.5, None, "NaN", 0.25, "Infinity"])
    assert data.x == [1, 3, 4, 5]
    assert data.y == [0.5, None, 0.25, None]
    assert data.broken_x == [3, 5]
    assert data.broken_names == ["NaN", "∞"]


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=40))
def test_no_smoothing_changes_nothing(values: list[float | None]) -> None:
    assert charts.smooth(values, 0) == values


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_smoothing_is_the_weighted_mean_of_the_values_so_far(
    values: list[float], weight: float
) -> None:
    weights = [weight ** (len(values) - 1 - i) for i in range(len(values))]
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
    assert charts.smooth(values, weight)[-1] == pytest.approx(mean, rel=1e-6, abs=1e-6)


def test_smoothing_restarts_after_a_gap() -> None:
    assert charts.smooth([5.0, None, 1.0], 0.9) == [5.0, None, pytest.approx(1.0)]


def test_increments_replace_the_points_they_overlap() -> None:
    old = _series([1, 2, 3], fvu=[0.9, 0.8, 0.7])
    new = _series([3, 4], fvu=[0.65, 0.6], eval_fvu=[0.7, None])
    both = charts.merged(old, new)
    assert both.step == [1, 2, 3, 4]
    assert both.tokens == [100, 200, 300, 400]
    assert both.series == {"fvu": [0.9, 0.8, 0.65, 0.6], "eval_fvu": [None, None, 0.7, None]}
    assert (both.total_points, both.returned_points) == (4, 4)


def test_increments_to_a_thinned_curve_keep_the_count_of_all_points() -> None:
    old = _series([1, 50, 100], fvu=[1, 2, 3]).model_copy(update={"total_points": 100})
    both = charts.merged(old, _series([101], fvu=[4]))
    assert (both.total_points, both.returned_points) == (101, 4)


def test_an_empty_increment_changes_nothing() -> None:
    old = _series([1], fvu=[0.5])
    assert charts.merged(old, _series([])) is old
    assert charts.merged(None, old) is old


@pytest.mark.parametrize("name", charts.PANELS)
@pytest.mark.parametrize("x_axis", ["step", "tokens", "time"])
def test_every_panel_draws_its_metrics_over_each_axis(name: str, x_axis: charts.XAxis) -> None:
    panel = charts.PANELS[name]
    data = _series([1, 2], **{metric: [0.5, 0.25] for metric in panel.metrics})
    drawn = charts.figure(data, panel, x_axis=x_axis)
    go.Figure(drawn)  # refuses what Plotly does not know
    assert [t["name"] for t in drawn["data"]] == [METRICS[m].title for m in panel.metrics]
    assert all(list(t["y"]) == [0.5, 0.25] for t in drawn["data"])
    expected = {"step": [1, 2], "tokens": [100, 200], "time": [0.1, 0.2]}[x_axis]
    assert list(drawn["data"][0]["x"]) == expected
    assert drawn["layout"]["hovermode"] == "x unified"


def test_zoom_survives_new_points_and_not_a_change_of_axis() -> None:
    panel = charts.PANELS["quality"]

    def revision(steps: list[int], *, log_y: bool = False) -> object:
        data = _series(steps, loss=[0.5] * len(steps))
        return charts.figure(data, panel, log_y=log_y)["layout"]["uirevision"]

    assert revision([1, 2]) == revision([1, 2, 3])
    assert revision([1, 2]) != revision([1, 2], log_y=True)


def test_a_value_that_is_not_finite_is_marked_by_its_name() -> None:
    data = _series([1, 2, 3], loss=[0.5, "NaN", 0.4])
    traces = charts.figure(data, charts.PANELS["quality"])["data"]
    marks = next(t for t in traces if t["uid"] == "loss-broken")
    assert list(marks["x"]) == [2]
    assert list(marks["text"]) == ["NaN"]


def test_only_panels_that_allow_it_become_logarithmic() -> None:
    data = _series([1], l0=[32.0], loss=[0.5])
    kinds = {
        name: charts.figure(data, charts.PANELS[name], log_y=True)["layout"]["yaxis"]
        for name in ("l0", "quality")
    }
    assert kinds["l0"]["type"] == "linear"
    assert kinds["quality"]["type"] == "log"


def test_smoothing_keeps_the_raw_curve_faintly_visible() -> None:
    steps = list(range(100))
    data = _series(steps, loss=[float(s % 2) for s in steps])
    traces = charts.figure(data, charts.PANELS["quality"], smoothing=0.9)["data"]
    raw = next(t for t in traces if t["uid"] == "loss-raw")
    assert list(raw["y"]) == data.series["loss"]
    assert raw["opacity"] < 1


def test_a_histogram_has_one_bar_between_neighboring_edges() -> None:
    drawn = histogram_figure(Histogram(edges=[0, 1, 3], counts=[5, 2]))
    go.Figure(drawn)  # refuses what Plotly does not know
    bars = drawn["data"][0]
    assert list(bars["x"]) == [0.5, 2]
    assert list(bars["width"]) == [1, 2]
    assert list(bars["y"]) == [5, 2]


@given(st.lists(st.one_of(st.none(), st.just("NaN"), st.floats(-1e3, 1e3)), max_size=300))
def test_a_sparkline_stays_inside_its_box_and_ends_at_the_last_value(
    values: list[MetricValue],
) -> None:
    drawn = charts.sparkline(values, width=100, height=20)
    points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", drawn)]
    finite = charts.finite_values(values)
    assert bool(points) == (len(finite) >= 2)
    assert all(0 <= x <= 100 and 0 <= y <= 20 for x, y in points)
    if len(points) > 1:
        assert points[-1][0] == 100
        if finite[-1] == max(finite):
            assert points[-1][1] == pytest.approx(2 if max(finite) > min(finite) else 18, abs=0.1)
