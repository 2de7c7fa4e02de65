"""The training of several runs side by side: settings, measurements, curves, FVU against L0."""

from __future__ import annotations

import json
from collections.abc import Sequence

import streamlit as st

from frontend.api.cache import cached_run, client
from frontend.charts.overlay import RUN_COLORS, overlay_figure, overlay_panels
from frontend.charts.pareto import held_out, pareto_figure
from frontend.charts.plot import show_figure
from frontend.html.blocks import badge, html_block, link, notice, show_linked
from frontend.html.format import DASH, number
from frontend.html.tokens import escaped
from frontend.runs.cards import metric_text
from frontend.runs.curve_controls import curve_view
from frontend.runs.tables import comparison_csv, curves_csv, measured_names
from frontend.shell.url import has_ended, live
from sae_engine.schema.analysis import Comparison
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import Run

MAX_POINTS = 600
MOST_BESIDE = 3  # tables of more runs stand below each other


def show_training(run_ids: Sequence[str]) -> None:
    """Everything about how runs were trained, kept up to date while one of them is."""

    def body() -> None:
        found = client().compare(run_ids, max_points=MAX_POINTS)
        wide = len(found.runs) > MOST_BESIDE
        left, right = (st.container(), st.container()) if wide else st.columns(2, gap="large")
        with left:
            show_linked(_differences(found), key="differences")
        with right:
            show_linked(_metrics(found), key="measurements")
        _downloads(found)
        _curves(found)
        show_pareto(found.runs, colors=dict(zip(run_ids, RUN_COLORS, strict=False)))

    live(body, active=not all(has_ended(cached_run(run_id)) for run_id in run_ids))


def show_pareto(runs: Sequence[Run], *, colors: dict[str, str] | None = None) -> None:
    """FVU against L0 of those runs that were evaluated; a click opens the run."""
    points = held_out(runs)
    html_block('<h3 class="wb-section">Held-out FVU against L0</h3>')
    if not points:
        html_block(notice("None of these runs has been evaluated on held-out text yet."))
        return
    missing = len(runs) - len(points)
    left_out = f" {missing} not evaluated yet." if missing else ""
    html_block(
        '<p class="wb-muted">Lower and further left is better; the dotted line joins the runs that '
        f"no other one beats. A click opens a run.{left_out}</p>"
    )
    show_figure(pareto_figure(points, colors=colors), key="pareto", opens="run?id=")


def run_key(runs: Sequence[Run]) -> str:
    """Which color is whose, as links."""
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
    title = '<h3 class="wb-panel">Settings that differ</h3>'
    if not found.differences:
        return title + notice("These runs have the same settings.")
    rows = "".join(
        f"<tr><td><code>{escaped(difference.field)}</code></td>"
        + "".join(f"<td>{setting_text(value)}</td>" for value in difference.values)
        + "</tr>"
        for difference in found.differences
    )
    return f"{title}{_table('Setting', found.runs, rows)}"


def setting_text(value: object) -> str:
    """A setting's value as HTML."""
    if value is None:
        return DASH
    return escaped(value if isinstance(value, str) else json.dumps(value))


def _metrics(found: Comparison) -> str:
    names = measured_names(found.runs)
    title = '<h3 class="wb-panel">Measurements: last and best</h3>'
    if not names:
        return title + notice("None of these runs has measured anything yet.")
    rows = "".join(
        f'<tr><td title="{escaped(METRICS[name].help)}">{escaped(METRICS[name].title)}</td>'
        + "".join(_measured(found, place, name) for place in range(len(found.runs)))
        + "</tr>"
        for name in names
    )
    return f"{title}{_table('Metric', found.runs, rows)}"


def _measured(found: Comparison, place: int, name: str) -> str:
    """The last value, and the best one where it was another."""
    run, best = found.runs[place], found.best[place].get(name)
    text = metric_text(run, name)
    if best is not None and best.value != run.metrics.get(name):
        tip = f"Best, at step {best.step:,}"
        text += f' <small title="{tip}">best {number(best.value)}</small>'
    return f'<td class="num">{text}</td>'


def _table(first: str, runs: Sequence[Run], rows: str) -> str:
    return (
        f'<div class="wb-scroll"><table class="wb-table small"><thead><tr><th>{first}</th>'
        f"{_heads(runs)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _downloads(found: Comparison) -> None:
    def whole_curves() -> str:
        return curves_csv(found.runs, [client().metrics(run.id) for run in found.runs])

    with st.container(horizontal=True, gap="small"):
        tip = "Settings that differ, last and best values: a row for each run"
        table = comparison_csv(found)
        st.download_button(
            "Table", table, "runs.csv", "text/csv", key="csv-table", help=tip,
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        tip = "Every point of every curve: a row for each run and step"
        st.download_button(
            "Curves", whole_curves, "curves.csv", "text/csv", key="csv-curves", help=tip,
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip


def _curves(found: Comparison) -> None:
    panels = overlay_panels(found.curves)
    if not panels:
        return
    view = curve_view(
        shown=sum(data.returned_points for data in found.curves),
        total=sum(data.total_points for data in found.curves),
    )
    show_linked(f'<div class="wb-key">{run_key(found.runs)}</div>', key="run-key")
    names = [run.name for run in found.runs]
    columns = st.columns(2)
    for position, panel in enumerate(panels):
        with columns[position % 2]:
            drawn = overlay_figure(panel, found.curves, names, **view._asdict())
            show_figure(drawn, key=f"chart-{panel.metrics[0]}")
