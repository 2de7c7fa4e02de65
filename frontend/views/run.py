"""One run: status, metrics, live curves, snapshots, log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from frontend.api.cache import cached_run, client, forget_cached
from frontend.api.client import ApiProblem
from frontend.charts.curves import CurveView, Panel, figure, run_panels
from frontend.charts.figure import Figure
from frontend.charts.series import measured_in, merged
from frontend.html.blocks import (
    badge,
    escaped_lines,
    html_block,
    link,
    notice,
    panel_title,
    progress_bar,
    show_linked,
    tag_chips,
)
from frontend.html.format import age, count, short_count
from frontend.html.tokens import escaped
from frontend.runs.actions import show_actions
from frontend.runs.alerts import alert_badges, with_marks
from frontend.runs.cards import cards, fraction_done, progress_line
from frontend.runs.comparison import csv_button
from frontend.runs.curve_panels import curve_view, show_panels
from frontend.runs.devices import device_panel, is_of_cluster
from frontend.runs.log import show_log
from frontend.runs.push import push_form
from frontend.runs.queue import show_place
from frontend.runs.tables import curves_csv
from frontend.shell.downloads import download_menu
from frontend.shell.navigation import page_button
from frontend.shell.problems import live
from frontend.shell.run_page import features_ahead, open_run
from sae_engine.schema.exports import file_name
from sae_engine.schema.runs import ENDED, MetricsSeries, Notice, Run, Snapshot

MAX_POINTS = 1500
LOG_LINES = 1000
MOST_NOTICES = 8
OVERLAP_POINTS = 20
"""Points fetched again with each increment, because values of one step may arrive separately."""


def show() -> None:
    """The page."""
    run = open_run("run", search=True)
    _about(run)
    live(lambda: _live(run), active=run.status not in ENDED)
    _log(run)


def _about(run: Run) -> None:
    """The run's origin, tags and notes."""
    origin = f"cloned from {_origin(run.cloned_from)}" if run.cloned_from is not None else ""
    source = run.config.sae.pretrained
    imported = f"imported from <code>{escaped(source)}</code>" if source is not None else ""
    archived = '<span class="wb-badge">archived</span>' if run.archived else ""
    facts = " ".join(part for part in (imported, origin, tag_chips(run), archived) if part)
    notes = f'<p class="wb-notes">{escaped_lines(run.notes)}</p>' if run.notes else ""
    if facts or notes:
        show_linked(f'<div class="wb-about">{facts}{notes}</div>', key="about")


def _origin(run_id: str) -> str:
    """The cloned run, which may have been deleted since."""
    try:
        name = cached_run(run_id).name
    except ApiProblem as error:
        if error.problem.status != 404:
            raise
        return "a deleted run"
    return link("run", escaped(name), {"id": run_id})


def _live(drawn: Run) -> None:
    """Everything that changes while the run trains; the rest of the page shows `drawn`."""
    run = client().run(drawn.id)
    if run.status != drawn.status:
        forget_cached()
        st.rerun()
    data = _metrics(run)
    notices = client().notices(run.id)
    _status(run)
    show_linked(cards(run, data), key="cards")
    curves, side = st.columns([3.4, 1], gap="medium")
    with curves:
        _curves(run, data, notices)
    with side:
        _snapshots(run)
        recent = reversed(notices[-MOST_NOTICES:])
        html_block("".join(notice(n.message, level=n.level) for n in recent))
        if run.status not in ENDED:
            html_block(panel_title("Server" if is_of_cluster(run.device) else "Machine"))
            html_block(device_panel(client().system(), device=run.device))


def _status(run: Run) -> None:
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
        title = "This run failed" if run.status == "failed" else f"This run was {run.status}"
        html_block(notice(run.error.message, level="error", title=title))
        if run.error.log_tail:
            with st.expander("Last lines of the log", key="log-tail"):
                st.code(run.error.log_tail, None, wrap_lines=True, height=300)


def _metrics(run: Run) -> MetricsSeries:
    """All points so far: the first call fetches the curves, later ones only their increments."""
    key = f"metrics:{run.id}"
    held: MetricsSeries | None = st.session_state.get(key)
    grows = held is not None and held.step and run.progress.step >= held.step[-1]
    if held is not None and grows and len(held.step) < 2 * MAX_POINTS:
        since = held.step[-OVERLAP_POINTS] - 1 if len(held.step) >= OVERLAP_POINTS else -1
        data = merged(held, client().metrics(run.id, since_step=since))
    else:
        data = client().metrics(run.id, max_points=MAX_POINTS)
    st.session_state[key] = data
    return data


def _curves(run: Run, data: MetricsSeries, notices: list[Notice]) -> None:
    if run.config.sae.pretrained is not None:
        if "eval_fvu" in run.metrics:
            text = "The values above were measured on held-out text. There are no training curves."
            html_block(notice(text, title="This SAE was trained elsewhere"))
        return
    panels = run_panels(measured_in([data]))
    if not any(panels):
        ended = "This run ended before its first step was measured."
        html_block(notice(ended if run.status in ENDED else "Curves appear after the first step."))
        return

    view: CurveView = curve_view([data], lambda: _curves_button(run))

    def draw(panel: Panel) -> Figure:
        return with_marks(figure(data, panel, view), notices, data, view.x_axis)

    show_panels(panels.first, draw)
    _folded("More metrics", "more-metrics", panels.more, draw)
    _folded("Process and GPU", "system-metrics", panels.system, draw)


def _folded(title: str, key: str, panels: Sequence[Panel], draw: Callable[[Panel], Figure]) -> None:
    """Charts that are drawn only once they are unfolded."""
    if not panels:
        return
    part = st.expander(title, key=key, on_change="rerun")
    if part.open:
        with part:
            show_panels(panels, draw)


def _curves_button(run: Run) -> None:
    tip = "One row per step: every point of every curve"
    name = file_name(run.name, run.progress.step, "curves.csv")
    csv_button(
        "CSV", lambda: curves_csv([run], [client().metrics(run.id)]), name, key="csv", tip=tip
    )


def _snapshots(run: Run) -> None:
    snapshots = client().snapshots(run.id)
    html_block(panel_title("Features"))
    if not snapshots:
        html_block(f'<p class="wb-muted">{features_ahead(run)}</p>')
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
    download_menu(run, width="stretch")
    push_form(run)
    rows = "".join(_snapshot(run, s) for s in reversed(snapshots))
    show_linked(f'<ul class="wb-snapshots">{rows}</ul>', key="snapshots")


def _snapshot(run: Run, snapshot: Snapshot) -> str:
    name = "final" if snapshot.final else f"step {count(snapshot.step)}"
    target = link("features", name, {"id": run.id, "snapshot": snapshot.step})
    tip = f"{count(snapshot.index_tokens)} tokens indexed"
    facts = age(snapshot.created_at)
    if run.config.sae.pretrained is None:
        tip = f"{count(snapshot.tokens)} tokens trained, {tip}"
        facts = f"{short_count(snapshot.tokens)} tokens · {facts}"
    return f'<li title="{tip}">{target}<span>{facts}</span></li>'


def _log(run: Run) -> None:
    def body() -> None:
        show_log(client().log(run.id, tail=LOG_LINES) or "The log is empty.", key="log")

    log = st.expander("Log", key="log-open", on_change="rerun")
    if log.open:
        with log:
            live(body, active=run.status not in ENDED)


if __name__ == "__main__":
    show()
