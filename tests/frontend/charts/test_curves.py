"""Charts of a run's curves, and the histogram of a feature's activations."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import pytest

from frontend.charts.curves import PANELS, CurveView, Panel, figure, run_panels
from frontend.charts.histograms import activation_figure
from frontend.charts.series import XAxis
from sae_engine.schema.features import Histogram
from sae_engine.schema.records import METRICS
from tests.frontend.charts.test_series import series_of

QUALITY, L0 = PANELS[:2]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.metrics[0])
@pytest.mark.parametrize("x_axis", ["step", "tokens", "time"])
def test_every_panel_draws_its_metrics_over_each_axis(panel: Panel, x_axis: XAxis) -> None:
    data = series_of([1, 2], **{metric: [0.5, 0.25] for metric in panel.metrics})
    drawn = figure(data, panel, CurveView(x_axis))
    go.Figure(drawn)  # refuses what Plotly does not know
    assert [t["name"] for t in drawn["data"]] == [METRICS[m].title for m in panel.metrics]
    assert all(list(t["y"]) == [0.5, 0.25] for t in drawn["data"])
    expected = {"step": [1, 2], "tokens": [100, 200], "time": [0.1, 0.2]}[x_axis]
    assert list(drawn["data"][0]["x"]) == expected
    assert drawn["layout"]["hovermode"] == "x unified"


@pytest.mark.parametrize(
    ("x_axis", "head"),
    [("step", "step %{x:,}"), ("tokens", "%{x:,} tokens"), ("time", "%{x:,.1f} s")],
)
def test_a_tooltip_names_its_axis_and_shows_shares_in_percent(x_axis: XAxis, head: str) -> None:
    data = series_of([1, 2], frac_dead=[0.0127, 0.01], l0=[16, 16])
    for metric, value in (("frac_dead", "%{y:.3~p}"), ("l0", "%{y:.4g}")):
        drawn = figure(data, Panel((metric,)), CurveView(x_axis))
        assert drawn["layout"]["xaxis"]["unifiedhovertitle"] == {"text": head}
        assert drawn["data"][0]["hovertemplate"] == value


def test_every_measured_metric_has_one_chart_titled_by_its_definition() -> None:
    first, more, system = run_panels(METRICS)
    shown = [name for panel in (*first, *more, *system) for name in panel.metrics]
    assert sorted(shown) == sorted(METRICS)
    assert [p.heading for p in more] == [METRICS[p.metrics[0]].title for p in more]
    assert run_panels({"fvu", "grad_norm", "memory_gib"}) == (
        [QUALITY],
        [Panel(("grad_norm",))],
        [Panel(("memory_gib",))],
    )


def test_zoom_survives_new_points_and_not_a_change_of_axis() -> None:
    def revision(steps: list[int], view: CurveView) -> object:
        data = series_of(steps, loss=[0.5] * len(steps))
        return figure(data, QUALITY, view)["layout"]["uirevision"]

    assert revision([1, 2], CurveView()) == revision([1, 2, 3], CurveView())
    assert revision([1, 2], CurveView()) != revision([1, 2], CurveView(log_y=True))


@pytest.mark.parametrize(
    ("view", "ends"),
    [
        (CurveView(), (1, 101)),
        (CurveView("tokens"), (100, 10_100)),
        (CurveView(log_x=True), (0, math.log10(101))),
    ],
)
def test_all_charts_of_a_run_have_the_same_x_axis(
    view: CurveView, ends: tuple[float, float]
) -> None:
    """Also those of a metric that was measured rarely."""
    steps = list(range(1, 102))
    rare = [None] * 50 + [0.5] + [None] * 50
    data = series_of(steps, loss=[0.5] * 101, l0=[3.0] * 101, ce_delta=rare)
    ranges = [figure(data, p, view)["layout"]["xaxis"]["range"] for p in PANELS]
    assert all(found == ranges[0] for found in ranges)
    low, high = ranges[0]
    space = 0.02 * (ends[1] - ends[0])
    assert (low, high) == pytest.approx((ends[0] - space, ends[1] + space))


def test_a_single_point_leaves_the_axis_to_plotly() -> None:
    for steps in ([], [7]):
        data = series_of(steps, loss=[0.5] * len(steps))
        assert figure(data, QUALITY, CurveView())["layout"]["xaxis"]["range"] is None


def test_a_non_finite_value_is_marked_by_its_name() -> None:
    data = series_of([1, 2, 3], loss=[0.5, "NaN", 0.4])
    traces = figure(data, QUALITY, CurveView())["data"]
    marks = next(t for t in traces if t["uid"] == "loss-broken")
    assert list(marks["x"]) == [2]
    assert list(marks["text"]) == ["NaN"]


@pytest.mark.parametrize(("panel", "kind"), [(L0, "linear"), (QUALITY, "log")])
def test_only_panels_that_allow_it_become_logarithmic(panel: Panel, kind: str) -> None:
    data = series_of([1], l0=[32.0], loss=[0.5])
    assert figure(data, panel, CurveView(log_y=True))["layout"]["yaxis"]["type"] == kind


def test_smoothing_keeps_the_raw_curve_faintly_visible() -> None:
    steps = list(range(100))
    data = series_of(steps, loss=[float(s % 2) for s in steps])
    traces = figure(data, QUALITY, CurveView(smoothing=0.9))["data"]
    raw = next(t for t in traces if t["uid"] == "loss-raw")
    assert list(raw["y"]) == data.series["loss"]
    assert raw["opacity"] < 1


def test_a_histogram_has_one_bar_between_neighboring_edges() -> None:
    drawn = activation_figure(Histogram(edges=[0, 1, 3], counts=[5, 2]))
    go.Figure(drawn)  # refuses what Plotly does not know
    bars = drawn["data"][0]
    assert list(bars["x"]) == [0.5, 2]
    assert list(bars["width"]) == [1, 2]
    assert list(bars["y"]) == [5, 2]
