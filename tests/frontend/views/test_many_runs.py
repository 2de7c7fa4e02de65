"""Figures and tables of many runs: the frontier, parallel axes, what differs, CSV."""

from __future__ import annotations

import csv
import io
from itertools import combinations
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.charts.overlay import run_colors
from frontend.charts.parallel import Axis, parallel_figure
from frontend.charts.pareto import Point, by_place, frontier, held_out, pareto_figure
from frontend.runs.tables import comparison_csv, curves_csv
from sae_engine.schema.analysis import BestValue, Comparison, ConfigDifference
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import merge
from sae_engine.schema.runs import MetricsSeries, Run
from tests.frontend.samples import NASTY, make_run
from tests.frontend.views.test_overview import plots
from tests.frontend.views.test_pages import Open, followed, shown
from tests.frontend.workbench import Workbench

RUN = make_run(status="finished")


def run(run_id: str, *, k: int = 32, name: str = "", **metrics: Any) -> Run:
    sae = RUN.config.sae.model_copy(update={"k": k})
    config = RUN.config.model_copy(update={"sae": sae, "name": name})
    return RUN.model_copy(
        update={"id": run_id, "name": name or run_id, "config": config, "metrics": metrics}
    )


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12))
def test_the_frontier_holds_the_runs_that_no_other_run_beats(values: list[tuple[int, int]]) -> None:
    points = [Point(RUN, l0, fvu) for l0, fvu in values]
    beaten = {
        (a.l0, a.fvu)
        for a in points
        for b in points
        if b.l0 <= a.l0 and b.fvu <= a.fvu and (b.l0, b.fvu) != (a.l0, a.fvu)
    }
    found = [(point.l0, point.fvu) for point in frontier(points)]
    assert found == sorted({(p.l0, p.fvu) for p in points} - beaten)


def test_only_runs_with_finite_held_out_values_are_points() -> None:
    runs = [
        run("a", eval_l0=16.0, eval_fvu=0.2),
        run("b", l0=16.0, fvu=0.2),
        run("c", eval_l0=16.0, eval_fvu="NaN"),
    ]
    assert [point.run.id for point in held_out(runs)] == ["a"]


def test_points_open_their_runs_and_show_names_as_text() -> None:
    points = held_out([run("a", name=NASTY, eval_l0=16.0, eval_fvu=0.2)])
    drawn = pareto_figure(points, colors={"a": "#123456"})
    go.Figure(drawn)  # refuses what Plotly does not know
    marks = drawn["data"][1]
    assert (marks["customdata"], marks["marker"]["color"]) == (["a"], ["#123456"])
    assert "&lt;script&gt;" in marks["hovertext"][0]
    assert drawn["layout"]["xaxis"].get("type") != "log"


def at_place(run_id: str, **changes: dict[str, Any]) -> Run:
    found = run(run_id, eval_l0=16.0, eval_fvu=0.2)
    config = merge(found.config.model_dump(mode="json"), changes)
    return found.model_copy(update={"config": RunConfig.model_validate(config)})


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"layer": 4}},
        {"model": {"site": "mlp_out"}},
        {"model": {"name": "other"}},
        {"data": {"dataset": "a.jsonl"}},
        {"data": {"dataset": "a.jsonl", "text_column": "body"}},
        {"data": {"subset": "de"}},
        {"data": {"activations": "acts"}},
        {"data": {"mixture": [{"dataset": "a.jsonl", "weight": 1}]}},
    ],
)
def test_only_runs_on_the_same_text_and_hook_are_compared(other: dict[str, Any]) -> None:
    same = {"sae": {"k": 7}, "train": {"lr": 0.1}}
    runs = [at_place("elsewhere", **other), at_place("a"), at_place("b", **same)]
    places = by_place(held_out(runs))
    assert [[p.run.id for p in points] for points in places.values()] == [["a", "b"], ["elsewhere"]]
    assert len({place.title for place in places}) == 2


def boxes_of(count: int, spread: float) -> list[tuple[float, float, float, float]]:
    """The labels of `count` runs close together in pixels of a 1,000 x 350 chart, both linear."""
    runs = [
        run(f"r{n}", name=f"run number {n}", eval_l0=30 + spread * n, eval_fvu=0.3 - 0.01 * n)
        for n in range(count)
    ]
    points = held_out(runs)
    marks = pareto_figure(points)["data"][1]
    boxes: list[tuple[float, float, float, float]] = []
    for n, (text, side) in enumerate(zip(marks["text"], marks["textposition"], strict=True)):
        if text:
            x = 1000 * (n / (count - 1) if spread else 0.5)
            y = 350 * (1 - n / (count - 1))
            half = 6 * len(text) / 2
            across = {"left": -half, "center": 0, "right": half}[side.split()[1]]
            up = {"top": 15, "middle": 0, "bottom": -15}[side.split()[0]]
            aside = 8 * (across > 0) - 8 * (across < 0) if up == 0 else 0
            middle = x + across + aside
            boxes.append((middle - half, y + up - 7, middle + half, y + up + 7))
    return boxes


@pytest.mark.parametrize(("count", "spread"), [(2, 0.0), (8, 1.0), (12, 1.0), (12, 0.0)])
def test_no_label_covers_another(count: int, spread: float) -> None:
    boxes = boxes_of(count, spread)
    assert len(boxes) >= min(count, 8)
    for a, b in combinations(boxes, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_points_are_labeled_until_labels_would_cover_each_other() -> None:
    def labels(count: int) -> list[str]:
        # the later a run, the worse in both: only the first is on the front
        runs = [
            run(f"r{n}", name="x" * 50, eval_l0=8.0 + n, eval_fvu=0.1 + n) for n in range(count)
        ]
        return pareto_figure(held_out(runs))["data"][1]["text"]

    assert labels(12) == ["x" * 27 + "…"] * 12
    assert labels(13) == ["x" * 27 + "…"] + [""] * 12


@pytest.mark.parametrize(
    ("l0", "sides"),
    [
        ([8.0], ["center"]),
        ([8.0, 9.0, 64.0], ["right", "center", "left"]),
        ([8.0] * 2, ["center"] * 2),
    ],
)
def test_labels_at_the_edges_point_into_the_chart(l0: list[float], sides: list[str]) -> None:
    runs = [run(f"r{n}", eval_l0=x, eval_fvu=0.1 + 0.1 * n) for n, x in enumerate(l0)]
    marks = pareto_figure(held_out(runs))["data"][1]
    assert marks["textposition"] == [f"top {side}" for side in sides]


def test_an_axis_of_very_different_values_is_logarithmic_with_round_marks() -> None:
    points = held_out([run("a", eval_l0=8.0, eval_fvu=0.2), run("b", eval_l0=64.0, eval_fvu=0.1)])
    axis = pareto_figure(points)["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert [t for t in axis["ticktext"] if 8 <= float(t) <= 64] == ["10", "20", "30", "50"]


def test_parallel_axes_scale_numbers_and_order_names() -> None:
    axes = [
        Axis("k", [8, 32, 16]),
        Axis("lr", [1e-4, 1e-2, 1e-3]),
        Axis("site", ["mlp_out", "resid_post", "mlp_out"]),
        Axis("tied", [True, False, True]),
        Axis("FVU", [0.5, None, 0.1]),
        Axis("same", [3, 3, 3]),
    ]
    drawn = parallel_figure(axes, ["a", "b", "c"], ["a", NASTY, "c"], run_colors(3))
    go.Figure(drawn)  # refuses what Plotly does not know
    heights = [trace["y"] for trace in drawn["data"]]
    assert heights[0] == [0, pytest.approx(0), 0, 0, 1, 0.5]
    assert heights[1] == [1, pytest.approx(1), 1, 1, None, 0.5]
    assert heights[2] == [pytest.approx(1 / 3), pytest.approx(0.5), 0, 0, 0, 0.5]
    labels = {(note["x"], note["text"]) for note in drawn["layout"]["annotations"]}
    assert {(0, "16"), (1, "0.001"), (2, "mlp_out"), (3, "True"), (4, "0.1")} <= labels
    assert all("<script" not in text for text in drawn["data"][1]["hovertext"])


@pytest.mark.parametrize("count", [1, 8, 9, 256])
def test_every_run_has_its_own_color(count: int) -> None:
    colors = run_colors(count)
    assert len(colors) == count
    assert len(set(colors)) == min(count, 201)  # shades are whole degrees of hue


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_comparison_as_csv_has_settings_last_and_best_values_of_each_run() -> None:
    runs = [run("a", k=8, name='odd, "name"', fvu=0.3, l0=8.0), run("b", k=16, fvu="NaN")]
    found = Comparison(
        runs=runs,
        differences=[ConfigDifference(field="sae.k", values=[8, 16])],
        curves=[],
        best=[{"fvu": BestValue(value=0.25, step=70)}, {}],
        obstacle=None,
    )
    first, second = _rows(comparison_csv(found))
    assert first["name"] == 'odd, "name"'
    assert (first["sae.k"], first["fvu"], first["l0"]) == ("8", "0.3", "8.0")
    assert (first["best_fvu"], first["best_fvu_step"]) == ("0.25", "70")
    assert (second["fvu"], second["l0"], second["best_fvu"]) == ("NaN", "", "")


def test_curves_as_csv_have_a_row_for_each_run_and_step() -> None:
    shared = {"total_points": 2, "returned_points": 2, "tokens": [10, 20], "time": [1.0, 2.0]}
    a = MetricsSeries(step=[1, 2], series={"fvu": [0.5, 0.25], "eval_fvu": [None, 0.3]}, **shared)
    b = MetricsSeries(step=[3, 4], series={"loss": [0.9, "NaN"]}, **shared)
    rows = _rows(curves_csv([run("a"), run("b")], [a, b]))
    assert [(row["id"], row["step"]) for row in rows] == [*zip("aabb", "1234", strict=True)]
    assert [row["fvu"] for row in rows] == ["0.5", "0.25", "", ""]
    assert rows[0]["eval_fvu"] == ""
    assert rows[-1]["loss"] == "NaN"


@pytest.fixture
def swept(workbench: Workbench) -> Workbench:
    """A sweep of three runs, one of them running."""
    for run_id, k in (("finished", 8), ("failed", 16), ("live", 32)):
        workbench.configure(run_id, "sae", k=k)
        workbench.change(run_id, name=f"trial {NASTY} k={k}", group_id="g")
    return workbench


def test_a_sweep_shows_its_settings_and_results(open_page: Open, swept: Workbench) -> None:
    app = open_page("sweep", id="g")
    text = shown(app)
    assert "sweep of 3 runs" in text
    assert "<script" not in text
    assert "<th><code>sae.k</code></th>" in text
    assert "<td>8</td>" in text
    figures = [plot["figure"] for plot in plots(app).values()]
    [lines] = [f for f in figures if "annotations" in f["layout"]]
    assert lines["layout"]["xaxis"]["ticktext"][0] == "sae.k"
    assert {trace["uid"] for trace in lines["data"]} == {"finished", "failed", "live"}
    titles = [f["layout"]["title"]["text"] for f in figures if "title" in f["layout"]]
    assert "FVU" in titles


def test_a_sweep_is_stopped_and_archived_as_a_whole(open_page: Open, swept: Workbench) -> None:
    app = open_page("sweep", id="g")
    app.button(key="stop-all").click().run()
    assert swept.runs["live"].status == "stopping"
    assert swept.runs["failed"].status == "failed"
    app.button(key="archive-all").click().run()
    assert all(run.archived for run in swept.runs.values())
    assert "sweep of 3 runs" in shown(app)


def test_an_unknown_sweep_shows_a_message_and_a_way_back(open_page: Open) -> None:
    app = open_page("sweep", id="nope")
    assert "No such sweep" in shown(app)
    followed(app, "Show all runs")
    assert "tiny baseline" in shown(app)
