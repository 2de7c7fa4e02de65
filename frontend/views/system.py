"""The machine: what trains where, who waits for it, and how busy everything is."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from frontend.api.cache import client
from frontend.html.blocks import badge, html_block, link, notice, progress_bar, show_linked
from frontend.html.format import count
from frontend.html.tokens import escaped
from frontend.runs.cards import fraction_done, progress_line
from frontend.runs.devices import device_panel
from frontend.runs.queue import show_queue
from frontend.shell.url import live, name_tab
from sae_engine.schema.machine import Slot, System
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
        text = "Another server works on this data folder; it starts the runs that wait."
        html_block(notice(text, level="warning", title="This server starts no runs"))
    left, right = st.columns([2.4, 1], gap="large")
    with left:
        html_block('<h3 class="wb-section">Slots</h3>')
        show_linked(slots_table(system, {run.id: run for run in active}), key="slots")
        more = system.queue.get("queued", 0)
        html_block(f'<h3 class="wb-section">Queue <small>{count(more)}</small></h3>')
        show_queue(waiting)
    with right:
        html_block('<h3 class="wb-section">Machine</h3>')
        html_block(device_panel(system))
        html_block(f'<p class="wb-muted">SAE Workbench {escaped(system.version)}</p>')


def slots_table(system: System, active: Mapping[str, Run]) -> str:
    """A row for each slot with what is trained there; runs outside of all slots come last."""
    rows = "".join(_slot(slot, active) for slot in system.slots)
    placed = {run_id for slot in system.slots for run_id in slot.runs}
    others = [run for run in active.values() if run.id not in placed]
    if others:
        rows += f"<tr><td>elsewhere</td><td>{''.join(map(_work, others))}</td></tr>"
    return (
        '<table class="wb-table slots"><thead><tr><th>Slot</th><th>Trains</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _slot(slot: Slot, active: Mapping[str, Run]) -> str:
    works = "".join(_work(active[run_id]) for run_id in slot.runs if run_id in active)
    return (
        f"<tr><td><strong>{escaped(slot.id)}</strong></td>"
        f"<td>{works or '<small>free</small>'}</td></tr>"
    )


def _work(run: Run) -> str:
    name = link("run", escaped(run.name), {"id": run.id}, css="wb-keyed")
    return (
        f'<div class="wb-work">{name}{badge(run.status)}'
        f"{progress_bar(fraction_done(run), css=run.status)}"
        f"<small>{escaped(progress_line(run))}</small></div>"
    )


if __name__ == "__main__":
    show()
