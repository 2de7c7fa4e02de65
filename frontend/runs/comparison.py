"""The training of several runs side by side: settings, metrics, curves, FVU vs. L0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from frontend.api.cache import cached_run, client
from frontend.charts.figure import RUN_COLORS
from frontend.charts.overlay import overlay_figure, overlay_panels
from frontend.charts.pareto import Place, Point, by_place, held_out, pareto_figure
from frontend.charts.plot import show_figure
from frontend.html.blocks import (
    badge,
    html_block,
    link,
    notice,
    panel_title,
    section_title,
    show_linked,
    table,
)
from frontend.html.format import counted, metric_text
from frontend.html.tokens import escaped
from frontend.runs.curve_panels import curve_view, show_panels
from frontend.runs.setting_text import setting_text
from frontend.runs.tables import comparison_csv, curves_csv, measured_names
from frontend.shell.problems import live
from frontend.shell.url import bound, choice_param
from sae_engine.schema.analysis import Comparison
from sae_engine.schema.records import METRICS, Metric
from sae_engine.schema.runs import ENDED, Run

MAX_POINTS = 600
WITHOUT_BEST = ("frac_dead", "frac_dense")
"""Lowest before training has settled, when few latents have had the time to die or to grow."""
MOST_BESIDE = 3
"""With more runs, the tables are stacked."""


def show_training(run_ids: Sequence[str]) -> None:
    """How the runs were trained, kept up to date while one of them trains."""

    def body() -> None:
        found = client().compare(run_ids, max_points=MAX_POINTS)
        stacked = len(found.runs) > MOST_BESIDE
        with st.container(key="beside"):
            tables = (st.container(), st.container()) if stacked else st.columns(2, gap="large")
        left, right = tables
        with left:
            show_linked(_differences(found), key="differences")
        with right:
            show_linked(metrics_table(found), key="measurements")
        _downloads(found)
        _curves(found)
        show_pareto(found.runs, colors=dict(zip(run_ids, RUN_COLORS, strict=False)))

    live(body, active=any(cached_run(run_id).status not in ENDED for run_id in run_ids))


def show_pareto(runs: Sequence[Run], *, colors: dict[str, str] | None = None) -> None:
    """FVU vs. L0 of the runs that were evaluated on the same text at the same place; a click opens
    the run.
    """
    evaluated = held_out(runs)
    section_title("Held-out FVU vs. L0")
    if not evaluated:
        html_block(notice("No run has been evaluated on held-out text yet."))
        return
    points = _at_one_place(by_place(evaluated))
    missing = len(runs) - len(evaluated)
    left_out = f" Not evaluated yet: {missing}." if missing else ""
    html_block(
        '<p class="wb-muted">Closer to the lower left is better. The dotted line is the Pareto '
        f"front. Click a point to open its run.{left_out}</p>"
    )
    show_figure(pareto_figure(points, colors=colors), key="pareto", opens="run?id=")


def _at_one_place(places: Mapping[Place, list[Point]]) -> list[Point]:
    """The points of the place that the URL names, by default the one with the most runs."""
    by_title = {place.title: points for place, points in places.items()}
    if len(by_title) == 1:
        return next(iter(by_title.values()))
    first = next(iter(by_title))
    key, write = bound("place", choice_param("place", tuple(by_title)) or first, default=first)
    chosen = st.selectbox(
        "Model, hook point and text",
        tuple(by_title),
        key=key,
        on_change=write,
        format_func=lambda title: f"{title} ({counted(len(by_title[title]), 'run')})",
        help="Only runs on the same text and hook point can be compared in this chart.",
    )
    return by_title[chosen]


def csv_button(
    label: str, data: str | Callable[[], str], file: str, *, key: str, tip: str | None = None
) -> None:
    """A button that downloads a CSV file."""
    st.download_button(
        label,
        data,
        file,
        "text/csv",
        key=key,
        help=tip,
        icon=":material/download:",
        on_click="ignore",
    )


def _run_key(runs: Sequence[Run]) -> str:
    """Links to the runs with their colors."""
    return "".join(
        f'<span class="wb-dot" style="--tone:{color}"></span>'
        f"{link('run', escaped(run.name), {'id': run.id}, css='wb-keyed')}"
        for run, color in zip(runs, RUN_COLORS, strict=False)
    )


def _heads(runs: Sequence[Run]) -> str:
    return "".join(
        f'<th style="border-bottom: 2px solid {color}">'
        f"{link('run', escaped(run.name), {'id': run.id})} {badge(run.status)}</th>"
        for run, color in zip(runs, RUN_COLORS, strict=False)
    )


def _differences(found: Comparison) -> str:
    title = panel_title("Settings that differ")
    if not found.differences:
        return title + notice("These runs have the same settings.")
    rows = "".join(
        f"<tr><td><code>{escaped(difference.field)}</code></td>"
        + "".join(f"<td>{escaped(setting_text(run, difference.field))}</td>" for run in found.runs)
        + "</tr>"
        for difference in found.differences
    )
    return title + _table("Setting", found.runs, rows)


def metrics_table(found: Comparison) -> str:
    """The last and the best value of every metric, a column for each run."""
    names = measured_names(found.runs)
    title = panel_title("Metrics: last and best")
    if not names:
        return title + notice("These runs have no metrics yet.")
    rows = "".join(
        f'<tr><td title="{escaped(METRICS[name].help)}">{_title(METRICS[name])}</td>'
        + "".join(_last_and_best(found, place, name) for place in range(len(found.runs)))
        + "</tr>"
        for name in names
    )
    return title + _table("Metric", found.runs, rows)


def _title(metric: Metric) -> str:
    unit = f" <small>{escaped(metric.unit)}</small>" if metric.unit else ""
    return escaped(metric.title) + unit


def _last_and_best(found: Comparison, place: int, name: str) -> str:
    """The last value, and the best one if it differs."""
    last, best = found.runs[place].metrics.get(name), found.best[place].get(name)
    text = metric_text(name, last)
    if best is not None and best.value != last and name not in WITHOUT_BEST:
        tip = f"Best, at step {best.step:,}"
        text += f' <small title="{tip}">best {metric_text(name, best.value)}</small>'
    return f'<td class="num">{text}</td>'


def _table(first: str, runs: Sequence[Run], rows: str) -> str:
    head = f"<th>{first}</th>{_heads(runs)}"
    return f'<div class="wb-scroll">{table(head, rows, css="small")}</div>'


def _downloads(found: Comparison) -> None:
    def whole_curves() -> str:
        return curves_csv(found.runs, [client().metrics(run.id) for run in found.runs])

    with st.container(horizontal=True, gap="small"):
        tip = "One row per run: settings that differ, last and best metrics"
        csv_button("Table", comparison_csv(found), "runs.csv", key="csv-table", tip=tip)
        tip = "One row per run and step: every point of every curve"
        csv_button("Curves", whole_curves, "curves.csv", key="csv-curves", tip=tip)


def _curves(found: Comparison) -> None:
    panels = overlay_panels(found.curves)
    if not panels:
        return
    view = curve_view(found.curves)
    show_linked(f'<div class="wb-key">{_run_key(found.runs)}</div>', key="run-key")
    names = [run.name for run in found.runs]
    show_panels(panels, lambda p: overlay_figure(p, found.curves, names, RUN_COLORS, view))
