"""Sweep: its runs in a table of settings and results, and their curves together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from frontend.api.cache import client, coarse_curves, forget_cached
from frontend.charts.overlay import OVERLAID, overlay_figure, overlay_panels, run_colors
from frontend.charts.parallel import Axis, parallel_figure
from frontend.charts.plot import show_figure
from frontend.html.blocks import (
    badge,
    empty_state,
    heading,
    html_block,
    link,
    notice,
    numeric_cells,
    progress_bar,
    section_title,
    show_linked,
    table,
)
from frontend.html.format import counted, metric_text
from frontend.html.tokens import escaped
from frontend.runs.actions import archive_button
from frontend.runs.cards import fraction_done
from frontend.runs.comparison import csv_button, show_pareto
from frontend.runs.curve_panels import curve_view, show_panels
from frontend.runs.list import sweep_name
from frontend.runs.setting_text import setting_text
from frontend.runs.tables import runs_csv
from frontend.shell.navigation import name_tab, page_button, runs_button
from frontend.shell.problems import live
from frontend.shell.url import param
from sae_engine.schema.analysis import MAX_COMPARED_RUNS
from sae_engine.schema.fields import differing_values
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import ENDED, Run, RunStatus

MOST_MEMBERS = 500
MOST_CURVES = 32
CURVES = OVERLAID[:5]
RESULTS = ("eval_fvu", "eval_l0", "ce_delta", "frac_alive")
"""Metrics at the end of a run, in the table and on the parallel axes."""


def show() -> None:
    """The page."""
    group_id = param("id")
    members = [] if group_id is None else _members(group_id)
    if not members:
        html_block(empty_state("No such sweep", "Its runs may have been deleted."))
        runs_button()
        return
    name_tab(sweep_name(members[0]))
    active = any(run.status not in ENDED for run in members)
    live(lambda: _sweep(_members(members[0].group_id or "")), active=active)


def _members(group_id: str) -> list[Run]:
    """All runs of the sweep, archived or not, in order of creation."""
    found = [
        run
        for archived in (False, True)
        for run in client()
        .runs(group_id=group_id, archived=archived, order="asc", limit=MOST_MEMBERS)
        .items
    ]
    return sorted(found, key=lambda run: (run.created_at, run.name))


def _sweep(members: list[Run]) -> None:
    if not members:
        st.rerun()
    settings = differing_values([member.settings for member in members])
    colors = run_colors(len(members))
    heading, buttons = st.columns([2, 1.6], vertical_alignment="bottom")
    with heading:
        show_linked(_heading(members), key="head")
    with buttons:
        _buttons(members, settings)
    show_linked(members_table(members, settings, colors), key="members")
    left, right = st.columns([1.6, 1], gap="large")
    with left:
        _parallel(members, settings, colors)
    with right:
        show_pareto(members, colors={run.id: c for run, c in zip(members, colors, strict=True)})
    _curves(members[:MOST_CURVES], colors[:MOST_CURVES], len(members))


def _heading(members: Sequence[Run]) -> str:
    states = Counter[RunStatus](run.status for run in members)
    counts = " ".join(f"{number} {badge(status)}" for status, number in states.items())
    size = f'<span class="wb-muted">sweep of {counted(len(members), "run")}</span>'
    return heading(sweep_name(members[0]), after=f"{size} {counts}")


def _buttons(members: Sequence[Run], settings: Mapping[str, Sequence[Any]]) -> None:
    with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        active = [run for run in members if run.status not in ENDED]
        if active and st.button("Stop all", icon=":material/stop:", key="stop-all"):
            for run in active:
                client().stop_run(run.id)
            forget_cached()
            st.rerun()
        best = sorted(members, key=_unexplained)[:MAX_COMPARED_RUNS]
        tip = f"The best {len(best)} runs side by side"
        icon, chosen = ":material/compare:", ",".join(run.id for run in best)
        page_button("Compare", "compare", key="compare", icon=icon, tip=tip, runs=chosen)
        csv_button("Table", runs_csv(members, settings), "sweep.csv", key="csv-members")
        archived = all(run.archived for run in members)
        ids = [run.id for run in members]
        archive_button(ids, archived=archived, key="archive-all", all_runs=True)


def _unexplained(run: Run) -> tuple[bool, float]:
    """Sorts runs by FVU, those without one last."""
    value = run.metrics.get("eval_fvu", run.metrics.get("fvu"))
    return (False, value) if isinstance(value, float) else (True, 0.0)


def members_table(
    members: Sequence[Run], settings: Mapping[str, Sequence[Any]], colors: Sequence[str]
) -> str:
    """A row for each run: its settings that differ, status, progress and results."""
    results = [name for name in RESULTS if any(name in run.metrics for run in members)]
    heads = [f"<th><code>{escaped(field)}</code></th>" for field in settings]
    heads += [
        f'<th class="num" title="{escaped(METRICS[name].help)}">{METRICS[name].title}</th>'
        for name in results
    ]
    rows = "".join(
        f'<tr><td><span class="wb-dot" style="--tone:{colors[place]}"></span>'
        f"{link('run', escaped(run.name), {'id': run.id}, css='wb-name')}</td>"
        + "".join(f"<td>{escaped(setting_text(run, path))}</td>" for path in settings)
        + f"<td>{badge(run.status)}</td><td>{progress_bar(fraction_done(run), css=run.status)}</td>"
        + numeric_cells(metric_text(name, run.metrics.get(name)) for name in results)
        + "</tr>"
        for place, run in enumerate(members)
    )
    head = [*heads[: len(settings)], "<th>Status</th><th>Progress</th>", *heads[len(settings) :]]
    shown = table(f"<th>Run</th>{''.join(head)}", rows, css="small members")
    return f'<div class="wb-scroll tall">{shown}</div>'


def _parallel(
    members: Sequence[Run], settings: Mapping[str, Sequence[Any]], colors: Sequence[str]
) -> None:
    section_title("Settings and results")
    results = [name for name in RESULTS if any(name in run.metrics for run in members)]
    if not results:
        html_block(notice("Lines appear after the first held-out evaluation."))
        return
    axes = [Axis(field, values) for field, values in settings.items()]
    axes += [Axis(METRICS[n].title, [_number(run, n) for run in members]) for n in results]
    drawn = parallel_figure(axes, [run.id for run in members], [r.name for r in members], colors)
    show_figure(drawn, key="parallel", opens="run?id=")


def _number(run: Run, metric: str) -> float | None:
    value = run.metrics.get(metric)
    return value if isinstance(value, float) else None


def _curves(members: Sequence[Run], colors: Sequence[str], total: int) -> None:
    curves = [coarse_curves(run, CURVES) for run in members]
    panels = overlay_panels(curves)
    if not panels:
        return
    few = f"first {len(members)} of {total} runs" if len(members) < total else ""
    section_title("Curves", note=few)
    view = curve_view(curves)
    names = [run.name for run in members]
    show_panels(panels, lambda panel: overlay_figure(panel, curves, names, colors, view))


if __name__ == "__main__":
    show()
