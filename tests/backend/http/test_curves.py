"""Downsampling keeps extremes, and non-finite values reach the client."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from backend.http.curves import metric_value, metrics_series
from backend.store import metric_points
from backend.store.metric_points import Points, Row

Values = dict[str, float]
values = st.dictionaries(
    st.sampled_from(["fvu", "l0", "eval_fvu"]),
    st.floats(allow_nan=True, allow_infinity=True),
)


def points_of(rows: list[Values]) -> Points:
    return metric_points.points_of(
        [Row(step, step * 10, step / 2, 1, json.dumps(row)) for step, row in enumerate(rows)]
    )


@given(st.lists(values, max_size=200), st.integers(1, 60))
def test_downsampled_curves_keep_ends_extremes_and_a_non_finite_value(
    rows: list[Values], max_points: int
) -> None:
    series = metrics_series(points_of(rows), max_points=max_points)
    assert series.total_points == len(rows)
    assert series.returned_points == len(series.step) <= max(max_points, 11)
    if rows:
        assert series.step[0] == 0
        assert series.step[-1] == len(rows) - 1
    for name, curve in series.series.items():
        everything = [row[name] for row in rows if name in row]
        finite = [v for v in everything if math.isfinite(v)]
        kept = [v for v in curve if isinstance(v, float)]
        if finite:
            assert max(kept) == max(finite)
            assert min(kept) == min(finite)
        if len(finite) < len(everything):
            assert any(isinstance(v, str) for v in curve)


@given(st.lists(values, max_size=50))
def test_curves_below_the_limit_are_complete(rows: list[Values]) -> None:
    series = metrics_series(points_of(rows), max_points=50)
    assert series.step == list(range(len(rows)))
    assert series.tokens == [step * 10 for step in series.step]
    for name, curve in series.series.items():
        assert curve == [metric_value(row.get(name)) for row in rows]


def test_missing_values_are_null_and_non_finite_values_are_strings() -> None:
    rows = [{"fvu": math.nan}, {"fvu": math.inf}, {"fvu": -math.inf}, {}, {"fvu": 0.5}]
    curve = metrics_series(points_of(rows)).series["fvu"]
    assert curve == ["NaN", "Infinity", "-Infinity", None, 0.5]


def test_keys_select_curves_even_without_values() -> None:
    series = metrics_series(points_of([{"fvu": 1.0, "l0": 2.0}]), keys=["l0", "ce_delta"])
    assert series.series == {"l0": [2.0], "ce_delta": [None]}


def test_one_outlier_among_a_hundred_thousand_points_survives() -> None:
    rows: list[Values] = [{"fvu": 0.5, "l0": 32.0} for _ in range(100_000)]
    rows[77_777]["fvu"] = 9.0
    series = metrics_series(points_of(rows), max_points=500)
    assert 400 < series.returned_points <= 500
    assert series.step[series.series["fvu"].index(9.0)] == 77_777
