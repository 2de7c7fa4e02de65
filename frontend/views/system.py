"""System: what runs on each device, the queue, and the machine's load."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import streamlit as st

from frontend.api.cache import client
from frontend.html.blocks import (
    badge,
    html_block,
    link,
    notice,
    progress_bar,
    section_title,
    show_linked,
    table,
)
from frontend.html.format import count
from frontend.html.tokens import escaped
from frontend.runs.cards import fraction_done, progress_line
from frontend.runs.devices import device_panel
from frontend.runs.queue import show_queue
from frontend.shell.navigation import name_tab
from frontend.shell.problems import live
from sae_engine.schema.machine import System
from sae_engine.schema.runs import Run

MOST_WAITING = 200
MOST_ACTIVE = 500


def show() -> None:
    """The page."""
    name_tab("System")
    html_block('<h1 class="wb-title">System</h1>')
    live(_system, active=True)


def _system() -> None:
    system = client().system()
    active = client().runs(status=["running", "stopping"], limit=MOST_ACTIVE).items
    waiting = client().runs(status="queued", limit=MOST_WAITING).items
    waiting.sort(key=lambda run: run.queue_position or 0)
    if not system.supervises:
        text = "Another server uses this data folder and starts the queued runs."
        html_block(notice(text, level="warning", title="This server does not start runs"))
    if system.problem:
        html_block(notice(system.problem, level="warning", title="Queued runs wait"))
    left, right = st.columns([2.4, 1], gap="large")
    with left:
        section_title("Devices")
        show_linked(devices_table(system, {run.id: run for run in active}), key="slots")
        section_title("Queue", note=count(system.queue.get("queued", 0)))
        show_queue(waiting)
    with right:
        section_title("Machine")
        html_block(device_panel(system))
        html_block(f'<p class="wb-muted">SAE Workbench {escaped(system.version)}</p>')


def devices_table(system: System, active: Mapping[str, Run]) -> str:
    """A row for each slot with its runs, then one for each other device: of runs in a terminal, and
    of those on a machine that has left the cluster.
    """
    rows = "".join(
        _row(
            f"<strong>{escaped(slot.id)}</strong>",
            [active[i] for i in slot.runs if i in active],
            slot.problem,
        )
        for slot in system.slots
    )
    placed = {run_id for slot in system.slots for run_id in slot.runs}
    for device, runs in groupby(
        sorted((run for run in active.values() if run.id not in placed), key=_device),
        key=_device,
    ):
        rows += _row(escaped(device), list(runs))
    return table("<th>Device</th><th>Running</th>", rows, css="slots")


def _device(run: Run) -> str:
    return run.device or "other"


def _row(name_html: str, runs: list[Run], problem: str | None = None) -> str:
    state = f"The last start failed: {escaped(problem)}" if problem else "free"
    works = "".join(map(_work, runs)) or f"<small>{state}</small>"
    return f"<tr><td>{name_html}</td><td>{works}</td></tr>"


def _work(run: Run) -> str:
    name = link("run", escaped(run.name), {"id": run.id}, css="wb-keyed")
    return (
        f'<div class="wb-work">{name}{badge(run.status)}'
        f"{progress_bar(fraction_done(run), css=run.status)}"
        f"<small>{escaped(progress_line(run))}</small></div>"
    )


if __name__ == "__main__":
    show()
