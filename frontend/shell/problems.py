"""Problems of the API in words: on a page, in a part that is redrawn, after a callback."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, notice
from frontend.shell.navigation import runs_button
from sae_engine.schema.problems import Problem

POLL_SECONDS = 2

_PROBLEM = "problem"


def show_problem(error: ApiProblem) -> None:
    """Explain what went wrong; an unreachable server is retried until it answers."""
    if error.unreachable:
        _retry()
        return
    html_block(notice(problem_text(error.problem), level="warning"))
    if error.problem.status == 404:
        runs_button("problem-home")


def problem_text(problem: Problem) -> str:
    """What is wrong, said once; a line for each field that adds something."""
    text = problem.detail or problem.title
    details = [f"{e.field}: {e.message}" for e in problem.errors if e.message not in text]
    return "\n".join([text, *details])


@st.fragment(run_every=POLL_SECONDS)
def _retry() -> None:
    try:
        client().health()
    except ApiProblem as error:
        _show_unreachable(error)
    else:
        st.rerun()


def live(body: Callable[[], None], *, active: bool) -> None:
    """Draw a part of a page, again and again while `active`, with problems in words."""

    @st.fragment(run_every=POLL_SECONDS if active else None)
    def part() -> None:
        try:
            body()
        except ApiProblem as error:
            if active and error.unreachable:
                _show_unreachable(error)
            else:
                show_problem(error)

    part()


def _show_unreachable(error: ApiProblem) -> None:
    text = f"{error.problem.detail} Retrying every {POLL_SECONDS} seconds; runs keep training."
    html_block(notice(text, level="warning", title="No connection"))


def attempt(action: Callable[[], object]) -> None:
    """Act in a widget's callback; a problem is shown when the page is drawn next."""
    try:
        action()
    except ApiProblem as error:
        st.session_state[_PROBLEM] = error


def show_problem_of_attempt() -> None:
    """Show the problem of the callback that led to this drawing, if it had one."""
    error: ApiProblem | None = st.session_state.pop(_PROBLEM, None)
    if error is not None:
        show_problem(error)
