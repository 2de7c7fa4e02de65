"""One run: state, quality, live curves, snapshots, log."""

from __future__ import annotations

from typing import cast

import streamlit as st

from frontend import charts
from frontend.blocks import badge, html_block, link, notice, progress_bar, run_header
from frontend.cards import cards, fraction_done, progress_line
from frontend.client import ApiProblem
from frontend.state import (
    bound,
    choice_param,
    client,
    has_ended,
    int_param,
    live,
    open_page,
    required_run,
    search_box,
    show_linked,
)
from frontend.token_view import escaped
from frontend.words import age, count, short_count
from sae_engine.schema.api import MetricsSeries, Run, RunPatch, Snapshot

MAX_POINTS = 1500
OVERLAP_POINTS = 20
"""Points fetched again with each increment: values of one step may arrive one after another."""


def show() -> None:
    """The page."""
    run = required_run()
    header, search = st.columns([3.2, 1.2], vertical_alignment="bottom")
    with header:
        show_linked(run_header(run, "run"), key="head")
    with search:
        search_box(run)
    live(lambda: _live(run.id), active=not has_ended(run))
    _log(run.id)


def _live(run_id: str) -> None:
    run = client().run(run_id)
    shown: str = st.session_state.setdefault(f"status:{run_id}", run.status)
    if shown != run.status:
        st.session_state[f"status:{run_id}"] = run.status
        st.cache_data.clear()
        st.rerun()
    data = _metrics(run)
    _state(run)
    html_block(cards(run, data))
    curves, side = st.columns([3.4, 1])
    with curves:
        _curves(data)
    with side:
        _snapshots(run)
        _notices(run)


def _state(run: Run) -> None:
    bar, buttons = st.columns([3.4, 1], vertical_alignment="center")
    with bar:
        html_block(
            f'<div class="wb-progressline">{badge(run.status)}'
            f"{progress_bar(fraction_done(run), css=run.status)}"
            f"<span>{escaped(progress_line(run))}</span></div>"
        )
    with buttons, st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        _buttons(run)
    if run.error is not None:
        html_block(notice(run.error.message, level="warning", title="The run failed"))
        if run.error.log_tail:
            st.code(run.error.log_tail, None, wrap_lines=True, height=180)


def _buttons(run: Run) -> None:
    if run.status in ("queued", "running"):
        tip = "Ends within seconds, keeps the SAE and builds its features."
        if st.button("Stop", icon=":material/stop:", key="stop", help=tip):
            client().stop_run(run.id)
            st.rerun(scope="fragment")
    if run.status == "stopping":
        tip = "Ends at once, without building features."
        if st.button("Stop now", icon=":material/stop:", key="force", help=tip):
            client().stop_run(run.id, force=True)
            st.rerun(scope="fragment")
    if st.button(
        "Clone", icon=":material/content_copy:", key="clone", help="New run from these settings"
    ):
        open_page("launch", clone=run.id)
    with st.popover("", icon=":material/more_horiz:", key="more"):
        name = st.text_input("Name", value=run.name, max_chars=200, key=f"rename:{run.id}")
        if st.button("Rename", key="rename", disabled=not name.strip() or name == run.name):
            client().update_run(run.id, RunPatch(name=name.strip()))
            st.cache_data.clear()
            st.rerun()
        if st.button(
            "Delete run and its files",
            icon=":material/delete:",
            key="delete",
            disabled=not has_ended(run),
            help="A run can be deleted once it has ended.",
        ):
            client().delete_run(run.id)
            open_page("")


def _metrics(run: Run) -> MetricsSeries:
    """All points so far: the first call fetches the curve, later ones what came since."""
    key = f"metrics:{run.id}"
    held: MetricsSeries | None = st.session_state.get(key)
    if (
        held is not None
        and held.step
        and run.progress.step >= held.step[-1]
        and len(held.step) < 2 * MAX_POINTS
    ):
        since = held.step[-OVERLAP_POINTS] - 1 if len(held.step) >= OVERLAP_POINTS else 0
        data = charts.merged(held, client().metrics(run.id, since_step=since))
    else:
        data = client().metrics(run.id, max_points=MAX_POINTS)
    st.session_state[key] = data
    return data


def _curves(data: MetricsSeries) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        x_axis = _x_axis()
        key, write = bound("log", choice_param("log", ("1",), "") == "1", default=False)
        log_y = st.toggle("Log scale", key=key, on_change=write)
        key, write = bound("smoothing", min(int_param("smoothing") or 0, 99), default=0)
        smoothing = st.slider("Smoothing", 0, 99, step=1, key=key, on_change=write, width=220)
        if data.total_points > data.returned_points:
            html_block(
                f'<span class="wb-muted">{count(data.returned_points)} of {count(data.total_points)} points</span>'
            )
    if not data.step:
        html_block(
            notice(
                "The first point appears within seconds of the first step.", title="No points yet"
            )
        )
        return
    shown = [
        (name, panel) for name, panel in charts.PANELS.items() if charts.has_values(data, panel)
    ]
    for position, (name, panel) in enumerate(shown):
        if position % 2 == 0:
            columns = st.columns(2)
        with columns[position % 2]:
            html_block(f'<h3 class="wb-panel">{panel.title}</h3>')
            st.plotly_chart(
                charts.figure(data, panel, x_axis=x_axis, log_y=log_y, smoothing=smoothing / 100),
                key=f"chart-{name}",
                config={"displaylogo": False, "displayModeBar": False},
            )


def _x_axis() -> charts.XAxis:
    axes = tuple(charts.X_TITLES)
    key, write = bound("x", choice_param("x", axes, "step"), default="step")
    chosen = st.segmented_control(
        "x axis", axes, key=key, on_change=write, label_visibility="collapsed", required=True
    )
    return cast(charts.XAxis, chosen)


def _snapshots(run: Run) -> None:
    snapshots = client().snapshots(run.id)
    html_block('<h3 class="wb-panel">Features</h3>')
    if not snapshots:
        text = (
            "The first snapshot can be browsed while the run trains."
            if not has_ended(run)
            else "This run ended before its first snapshot."
        )
        html_block(f'<p class="wb-muted">{text}</p>')
        return
    if st.button(
        "Browse features",
        type="primary",
        icon=":material/grid_view:",
        key="browse",
        width="stretch",
    ):
        open_page("features", id=run.id)
    rows = "".join(_snapshot(run.id, s) for s in reversed(snapshots))
    show_linked(f'<ul class="wb-snapshots">{rows}</ul>', key="snapshots")


def _snapshot(run_id: str, snapshot: Snapshot) -> str:
    kind = "final" if snapshot.final else f"step {count(snapshot.step)}"
    facts = f"{short_count(snapshot.tokens)} trained · {short_count(snapshot.index_tokens)} indexed · {age(snapshot.created_at)}"
    target = link("features", kind, {"id": run_id, "snapshot": snapshot.step})
    return f"<li>{target}<span>{facts}</span></li>"


def _notices(run: Run) -> None:
    try:
        notices = client().notices(run.id)
    except ApiProblem as error:
        if error.problem.status != 404:
            raise
        return
    html_block("".join(notice(n.message, level=n.level) for n in reversed(notices[-8:])))


def _log(run_id: str) -> None:
    def body() -> None:
        st.code(client().log(run_id, tail=200) or "The log is empty.", None, height=360)

    opened = st.expander("Log", key="log-open", on_change="rerun")
    if opened.open:
        with opened:
            live(body, active=True)


show()
