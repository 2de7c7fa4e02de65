"""Queued runs: their place, what they wait for, and the buttons to move them."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from frontend.api.cache import client, forget_cached
from frontend.api.client import ApiProblem
from frontend.html.blocks import act_button, html_block, link, notice, show_acting, table
from frontend.html.format import age, queue_place
from frontend.html.tokens import escaped
from frontend.shell.problems import show_problem
from sae_engine.schema.runs import Run, RunPatch


def show_place(run: Run) -> None:
    """A run's place in the queue, with buttons to move it; nothing once it has started."""
    if run.queue_position is None:
        return
    is_last = run.queue_position >= client().runs(status="queued", limit=1).total
    place = f"<strong>{queue_place(run.queue_position)}.</strong>"
    body = (
        f'<div class="wb-notice wb-place"><span>{place} {escaped(run.waiting_for or "")}</span>'
        f"<span>{_moves(run, last=is_last)}</span></div>"
    )
    _carry_out(show_acting(body, key="place"), [run])


def show_queue(waiting: Sequence[Run]) -> None:
    """The queued runs, the next one first, each with buttons."""
    if not waiting:
        html_block(notice("The queue is empty."))
        return
    rows = "".join(
        f'<tr><td class="num">{run.queue_position}</td>'
        f"<td>{link('run', f'<strong>{escaped(run.name)}</strong>', {'id': run.id}, css='wb-name')}"
        f'<span class="wb-sub">{escaped(run.waiting_for or "")}</span></td>'
        f'<td class="num">{age(run.created_at)}</td>'
        f'<td class="wb-acts">{_moves(run, last=run is waiting[-1])}'
        f"{act_button('stop', run.id, '✕', 'Remove from queue')}</td></tr>"
        for run in waiting
    )
    head = '<th class="num">#</th><th>Run</th><th class="num">Created</th><th></th>'
    _carry_out(show_acting(table(head, rows, css="queue"), key="queue"), waiting)


def _moves(run: Run, *, last: bool) -> str:
    first = run.queue_position == 1
    return (
        act_button("front", run.id, "⤒", "Move to front", enabled=not first)
        + act_button("up", run.id, "↑", "Move up", enabled=not first)
        + act_button("down", run.id, "↓", "Move down", enabled=not last)
    )


def _carry_out(done: tuple[str, str] | None, shown: Sequence[Run]) -> None:
    """Do what was clicked, and redraw the page."""
    if done is None:
        return
    verb, run_id = done
    run = next((run for run in shown if run.id == run_id), None)
    if run is None:
        return
    try:
        if verb == "stop":
            client().stop_run(run.id)
        elif run.queue_position is not None:
            place = new_position(verb, run.queue_position)
            client().update_run(run.id, RunPatch.model_validate({"queue_position": place}))
    except ApiProblem as error:
        show_problem(error)
        return
    forget_cached()
    st.rerun()


def new_position(verb: str, position: int) -> int:
    """The place in the queue that `front`, `up` or `down` leads to."""
    return {"front": 1, "up": max(1, position - 1), "down": position + 1}[verb]
