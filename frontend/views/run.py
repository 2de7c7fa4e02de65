"""One run: state, quality, live curves, snapshots, log."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import cached_run, client, forget_cached
from frontend.api.client import ApiProblem
from frontend.charts import curves as charts
from frontend.charts.plot import show_figure
from frontend.html.blocks import (
    badge,
    escaped_lines,
    html_block,
    link,
    notice,
    progress_bar,
    run_header,
    show_linked,
    tag_chips,
)
from frontend.html.format import age, count, short_count
from frontend.html.tokens import escaped
from frontend.runs.actions import show_actions
from frontend.runs.alerts import alert_badges, with_marks
from frontend.runs.cards import cards, fraction_done, progress_line
from frontend.runs.curve_controls import curve_view
from frontend.runs.devices import device_panel
from frontend.runs.log import show_log
from frontend.runs.queue import show_place
from frontend.shell.downloads import download_menu
from frontend.shell.navigation import page_button
from frontend.shell.url import has_ended, live, name_tab, required_run, search_box
from sae_engine.schema.runs import MetricsSeries, Notice, Run, Snapshot

MAX_POINTS = 1500
LOG_LINES = 1000

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
    _about(run)
    live(lambda: _live(run), active=not has_ended(run))
    _log(run)


def _about(run: Run) -> None:
    """Where it came from, its tags, what was noted about it."""
    origin = ""
    if run.cloned_from is not None:
        origin = f"from {_origin(run.cloned_from)}"
    put_away = '<span class="wb-badge">archived</span>' if run.archived else ""
    facts = " ".join(part for part in (origin, tag_chips(run), put_away) if part)
    notes = f'<p class="wb-notes">{escaped_lines(run.notes)}</p>' if run.notes else ""
    if facts or notes:
        show_linked(f'<div class="wb-about">{facts}{notes}</div>', key="about")


def _origin(run_id: str) -> str:
    """The run whose settings these were, which may have been deleted since."""
    try:
        name = cached_run(run_id).name
    except ApiProblem as error:
        if error.problem.status != 404:
            raise
        return "a run that was deleted"
    return link("run", escaped(name), {"id": run_id})


def _live(drawn: Run) -> None:
    """Everything that changes while the run works; `drawn` is what the rest of the page shows."""
    run = client().run(drawn.id)
    if run.status != drawn.status:
        forget_cached()
        st.rerun()
    data = _metrics(run)
    notices = client().notices(run.id)
    _state(run)
    show_linked(cards(run, data), key="cards")
    curves, side = st.columns([3.4, 1], gap="medium")
    with curves:
        _curves(data, notices, ended=has_ended(run))
    with side:
        _snapshots(run)
        _notices(notices)
        if not has_ended(run):
            html_block('<h3 class="wb-panel">Machine</h3>')
            html_block(device_panel(client().system(), device=run.device))


def _state(run: Run) -> None:
    bar, buttons = st.columns([2.6, 1.4], vertical_alignment="center")
    with bar:
        html_block(
            f'<div class="wb-progressline"><span>{badge(run.status)}{alert_badges(run)}</span>'
            f"{progress_bar(fraction_done(run), css=run.status)}"
            f"<span>{escaped(progress_line(run))}</span></div>"
        )
    with buttons:
        show_actions(run)
    show_place(run)
    if run.error is not None:
        html_block(notice(run.error.message, level="error", title=f"This run {run.status}"))
        if run.error.log_tail:
            st.code(run.error.log_tail, None, wrap_lines=True, height=180)


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


def _curves(data: MetricsSeries, notices: list[Notice], *, ended: bool) -> None:
    view = curve_view(shown=data.returned_points, total=data.total_points)
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
            drawn = charts.figure(data, panel, **view._asdict())
            show_figure(with_marks(drawn, notices, data, view.x_axis), key=f"chart-{name}")


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
    page_button(
        "Browse features",
        "features",
        key="browse",
        icon=":material/grid_view:",
        primary=True,
        width="stretch",
        id=run.id,
    )
    download_menu(run)
    rows = "".join(_snapshot(run.id, s) for s in reversed(snapshots))
    show_linked(f'<ul class="wb-snapshots">{rows}</ul>', key="snapshots")


def _snapshot(run_id: str, snapshot: Snapshot) -> str:
    name = "final" if snapshot.final else f"step {count(snapshot.step)}"
    target = link("features", name, {"id": run_id, "snapshot": snapshot.step})
    tip = f"{count(snapshot.tokens)} tokens trained, {count(snapshot.index_tokens)} indexed"
    facts = f"{short_count(snapshot.tokens)} tokens · {age(snapshot.created_at)}"
    return f'<li title="{tip}">{target}<span>{facts}</span></li>'


def _notices(notices: list[Notice]) -> None:
    if notices:
        html_block("".join(notice(n.message, level=n.level) for n in reversed(notices[-8:])))


def _log(run: Run) -> None:
    def body() -> None:
        show_log(client().log(run.id, tail=LOG_LINES) or "The log is empty.", key="log")

    opened = st.expander("Log", key="log-open", on_change="rerun")
    if opened.open:
        with opened:
            live(body, active=not has_ended(run))


if __name__ == "__main__":
    show()
