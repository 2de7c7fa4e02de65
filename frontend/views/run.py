"""One run: state, quality, live curves, snapshots, log."""

from __future__ import annotations

import streamlit as st

from frontend import charts
from frontend.blocks import (
    badge,
    html_block,
    link,
    notice,
    progress_bar,
    run_header,
    show_linked,
)
from frontend.cards import cards, fraction_done, progress_line
from frontend.curve_controls import log_choice, x_axis_choice
from frontend.downloads import download_menu
from frontend.plot import show_figure
from frontend.state import (
    bound,
    client,
    forget_cached,
    has_ended,
    int_param,
    live,
    name_tab,
    open_page,
    required_run,
    search_box,
)
from frontend.token_view import escaped
from frontend.words import age, count, short_count
from sae_engine.schema.runs import MetricsSeries, Run, RunPatch, Snapshot

MAX_POINTS = 1500

# Points fetched again with each increment: values of one step may arrive one after another.
OVERLAP_POINTS = 20


def show() -> None:
    """The page."""
    run = required_run()
    name_tab(run.name)
    header, search = st.columns([3.2, 1.2], vertical_alignment="bottom")
    with header:
        show_linked(run_header(run, "run"), key="head")
    with search:
        search_box(run)
    live(lambda: _live(run), active=not has_ended(run))
    _log(run)


def _live(drawn: Run) -> None:
    """Everything that changes while the run works; `drawn` is what the rest of the page shows."""
    run = client().run(drawn.id)
    if run.status != drawn.status:
        forget_cached()
        st.rerun()
    data = _metrics(run)
    _state(run)
    show_linked(cards(run, data), key="cards")
    curves, side = st.columns([3.4, 1], gap="medium")
    with curves:
        _curves(data, ended=has_ended(run))
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
        html_block(notice(run.error.message, level="error", title=f"This run {run.status}"))
        if run.error.log_tail:
            st.code(run.error.log_tail, None, wrap_lines=True, height=180)


def _buttons(run: Run) -> None:
    if run.status in ("queued", "running"):
        tip = "Ends within seconds, keeps the SAE and builds its features."
        if st.button("Stop", icon=":material/stop:", key="stop", help=tip):
            client().stop_run(run.id)
            forget_cached()
            st.rerun()
    if run.status == "stopping":
        tip = "Ends at once, without building features."
        if st.button("Stop now", icon=":material/stop:", key="force", help=tip):
            client().stop_run(run.id, force=True)
            forget_cached()
            st.rerun()
    if run.resumable:
        tip = "Goes on from its last checkpoint, on the same curve."
        if st.button("Resume", icon=":material/play_arrow:", key="resume", help=tip):
            client().resume_run(run.id)
            forget_cached()
            st.rerun()
    tip = "New run from these settings"
    if st.button("Clone", icon=":material/content_copy:", key="clone", help=tip):
        open_page("launch", clone=run.id)
    tip = "This run beside another one"
    if st.button("Compare", icon=":material/compare:", key="compare", help=tip):
        open_page("compare", a=run.id)
    with st.popover("", icon=":material/more_horiz:", key="more"):
        _more(run)


def _more(run: Run) -> None:
    name = st.text_input("Name", value=run.name, max_chars=200, key=f"rename:{run.id}").strip()
    if st.button("Rename", key="rename", disabled=name in ("", run.name)):
        client().update_run(run.id, RunPatch.model_validate({"name": name}))
        forget_cached()
        st.rerun()
    if st.button(
        "Delete run and its files",
        icon=":material/delete:",
        key="delete",
        disabled=not has_ended(run),
        help="A run can be deleted once it has ended.",
    ):
        client().delete_run(run.id)
        forget_cached()
        open_page("")


def _metrics(run: Run) -> MetricsSeries:
    """All points so far: the first call fetches the curve, later ones what came since."""
    key = f"metrics:{run.id}"
    held: MetricsSeries | None = st.session_state.get(key)
    grows = held is not None and held.step and run.progress.step >= held.step[-1]
    if held is not None and grows and len(held.step) < 2 * MAX_POINTS:
        since = held.step[-OVERLAP_POINTS] - 1 if len(held.step) >= OVERLAP_POINTS else -1
        data = charts.merged(held, client().metrics(run.id, since_step=since))
    else:
        data = client().metrics(run.id, max_points=MAX_POINTS)
    st.session_state[key] = data
    return data


def _curves(data: MetricsSeries, *, ended: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        x_axis = x_axis_choice()
        log_y = log_choice()
        key, write = bound("smoothing", min(int_param("smoothing") or 0, 99), default=0)
        smoothing = st.slider("Smoothing", 0, 99, step=1, key=key, on_change=write, width=220)
        if data.total_points > data.returned_points:
            shown = f"{count(data.returned_points)} of {count(data.total_points)} points"
            html_block(f'<span class="wb-muted">{shown}</span>')
    panels = [(n, panel) for n, panel in charts.PANELS.items() if charts.has_values(data, panel)]
    if not panels:
        text = (
            "This run ended before its first point."
            if ended
            else "The first point appears within seconds of the first step."
        )
        html_block(notice(text))
        return
    columns = st.columns(2)
    for position, (name, panel) in enumerate(panels):
        with columns[position % 2]:
            drawn = charts.figure(
                data, panel, x_axis=x_axis, log_y=log_y, smoothing=smoothing / 100
            )
            show_figure(drawn, key=f"chart-{name}")


def _snapshots(run: Run) -> None:
    snapshots = client().snapshots(run.id)
    html_block('<h3 class="wb-panel">Features</h3>')
    if not snapshots:
        text = (
            "This run ended before its first snapshot."
            if has_ended(run)
            else "The first snapshot can be browsed while the run trains."
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
    download_menu(run)
    rows = "".join(_snapshot(run.id, s) for s in reversed(snapshots))
    show_linked(f'<ul class="wb-snapshots">{rows}</ul>', key="snapshots")


def _snapshot(run_id: str, snapshot: Snapshot) -> str:
    name = "final" if snapshot.final else f"step {count(snapshot.step)}"
    target = link("features", name, {"id": run_id, "snapshot": snapshot.step})
    tip = f"{count(snapshot.tokens)} tokens trained, {count(snapshot.index_tokens)} indexed"
    facts = f"{short_count(snapshot.tokens)} tokens · {age(snapshot.created_at)}"
    return f'<li title="{tip}">{target}<span>{facts}</span></li>'


def _notices(run: Run) -> None:
    notices = client().notices(run.id)
    if notices:
        html_block("".join(notice(n.message, level=n.level) for n in reversed(notices[-8:])))


def _log(run: Run) -> None:
    def body() -> None:
        st.code(client().log(run.id, tail=200) or "The log is empty.", None, height=360)

    opened = st.expander("Log", key="log-open", on_change="rerun")
    if opened.open:
        with opened:
            live(body, active=not has_ended(run))


if __name__ == "__main__":
    show()
