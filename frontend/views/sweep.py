"""A sweep: its runs as a table of what was tried and what came of it, their curves together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from frontend.api.cache import client, curves_of, forget_cached
from frontend.charts.overlay import overlay_figure, overlay_panels, run_colors
from frontend.charts.parallel import Axis, parallel_figure
from frontend.charts.plot import show_figure
from frontend.html.blocks import (
    badge,
    empty_state,
    html_block,
    link,
    notice,
    progress_bar,
    show_linked,
)
from frontend.html.tokens import escaped
from frontend.runs.cards import fraction_done, metric_text
from frontend.runs.compared import setting_text, show_pareto
from frontend.runs.curve_controls import curve_view
from frontend.runs.list import sweep_name
from frontend.runs.tables import members_csv
from frontend.shell.navigation import page_button, runs_button
from frontend.shell.url import has_ended, live, name_tab, param
from sae_engine.schema.fields import differing
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import Run, RunPatch, RunStatus

MOST_MEMBERS = 500
MOST_CURVES = 32
MOST_COMPARED = 8
# What is judged at the end, in the table and on the parallel axes.
RESULTS = ("eval_fvu", "eval_l0", "ce_delta", "frac_alive")


def show() -> None:
    """The page."""
    group_id = param("id")
    members = [] if group_id is None else _members(group_id)
    if not members:
        html_block(empty_state("No such sweep", "Its runs may have been deleted."))
        runs_button()
        return
    name_tab(sweep_name(members[0]))
    live(
        lambda: _sweep(_members(members[0].group_id or "")), active=not all(map(has_ended, members))
    )


def _members(group_id: str) -> list[Run]:
    """All runs of the sweep, archived or not, in the order they were made."""
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
    settings = differing([member.config for member in members])
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
    crumb = link("./", "Runs", {})
    return (
        f'<div class="wb-head"><div class="wb-crumb">{crumb}</div>'
        f"<h1>{escaped(sweep_name(members[0]))}</h1>"
        f'<span class="wb-muted">sweep of {len(members)} runs</span> {counts}</div>'
    )


def _buttons(members: Sequence[Run], settings: Mapping[str, Sequence[Any]]) -> None:
    with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        active = [run for run in members if not has_ended(run)]
        if active and st.button("Stop all", icon=":material/stop:", key="stop-all"):
            _do(active, lambda run: client().stop_run(run.id))
        best = sorted(members, key=_quality)[:MOST_COMPARED]
        tip = f"Its runs side by side, the {MOST_COMPARED} best of them"
        ids = ",".join(run.id for run in best)
        page_button(
            "Compare", "compare", key="compare", icon=":material/compare:", tip=tip, runs=ids
        )
        st.download_button(
            "Table", members_csv(members, settings), "sweep.csv", "text/csv", key="csv-members",
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        put_away = all(run.archived for run in members)
        text = "Take out of the archive" if put_away else "Archive all"
        if st.button(text, icon=":material/archive:", key="archive-all"):
            patch = RunPatch.model_validate({"archived": not put_away})
            _do(members, lambda run: client().update_run(run.id, patch))


def _do(members: Sequence[Run], action: Callable[[Run], object]) -> None:
    for run in members:
        action(run)
    forget_cached()
    st.rerun()


def _quality(run: Run) -> tuple[bool, float]:
    """Sorts the least unexplained first, runs without a number last."""
    value = run.metrics.get("eval_fvu", run.metrics.get("fvu"))
    return (False, value) if isinstance(value, float) else (True, 0.0)


def members_table(
    members: Sequence[Run], settings: Mapping[str, Sequence[Any]], colors: Sequence[str]
) -> str:
    """A row for each run: what was tried in it, how it stands, what came of it."""
    results = [name for name in RESULTS if any(name in run.metrics for run in members)]
    heads = [f"<th><code>{escaped(field)}</code></th>" for field in settings]
    heads += [
        f'<th class="num" title="{escaped(METRICS[name].help)}">{METRICS[name].title}</th>'
        for name in results
    ]
    rows = "".join(
        f'<tr><td><span class="wb-dot" style="--tone:{colors[place]}"></span>'
        f"{link('run', escaped(run.name), {'id': run.id}, css='wb-name')}</td>"
        + "".join(f"<td>{setting_text(values[place])}</td>" for values in settings.values())
        + f"<td>{badge(run.status)}</td><td>{progress_bar(fraction_done(run), css=run.status)}</td>"
        + "".join(f'<td class="num">{metric_text(run, name)}</td>' for name in results)
        + "</tr>"
        for place, run in enumerate(members)
    )
    head = [*heads[: len(settings)], "<th>Status</th><th>Progress</th>", *heads[len(settings) :]]
    return (
        '<div class="wb-scroll tall"><table class="wb-table small members"><thead><tr><th>Run</th>'
        f"{''.join(head)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _parallel(
    members: Sequence[Run], settings: Mapping[str, Sequence[Any]], colors: Sequence[str]
) -> None:
    html_block('<h3 class="wb-section">What was tried, and what came of it</h3>')
    results = [name for name in RESULTS if any(name in run.metrics for run in members)]
    if not results:
        html_block(notice("The lines appear with the first evaluation on held-out text."))
        return
    axes = [Axis(field, values) for field, values in settings.items()]
    axes += [Axis(METRICS[n].title, [_number(run, n) for run in members]) for n in results]
    drawn = parallel_figure(axes, [run.id for run in members], [r.name for r in members], colors)
    show_figure(drawn, key="parallel", opens="run?id=")


def _number(run: Run, metric: str) -> float | None:
    value = run.metrics.get(metric)
    return value if isinstance(value, float) else None


def _curves(members: Sequence[Run], colors: Sequence[str], total: int) -> None:
    curves = [curves_of(run) for run in members]
    panels = overlay_panels(curves)
    if not panels:
        return
    few = (
        f" <small>the first {len(members)} of {total} runs</small>" if len(members) < total else ""
    )
    html_block(f'<h3 class="wb-section">Curves{few}</h3>')
    view = curve_view(
        shown=sum(data.returned_points for data in curves),
        total=sum(data.total_points for data in curves),
    )
    names = [run.name for run in members]
    columns = st.columns(2)
    for position, panel in enumerate(panels):
        with columns[position % 2]:
            drawn = overlay_figure(panel, curves, names, colors, **view._asdict())
            show_figure(drawn, key=f"chart-{panel.metrics[0]}")


if __name__ == "__main__":
    show()
