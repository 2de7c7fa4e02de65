"""Answers that take a while: the page shows their progress until they arrive."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, notice, progress_bar
from frontend.html.tokens import escaped
from sae_engine.schema.analysis import AnalysisProgress

POLL_SECONDS = 1
WARM_UP_POLL_SECONDS = 0.3

_Answer = TypeVar("_Answer")


def computed(
    ask: Callable[[], _Answer | AnalysisProgress], *, key: str, doing: str
) -> _Answer | None:
    """The answer of a computation; or None while the page shows its progress, to be redrawn when
    the answer is there.

    `doing` names the computation, such as `Building the map`. A failed one is repeated only on
    request.
    """
    failure = f"failed:{key}"
    if failure in st.session_state:
        html_block(notice(st.session_state[failure], level="warning", title=f"{doing} failed"))
        if st.button("Try again", key=f"retry:{key}"):
            del st.session_state[failure]
            st.rerun()
        return None

    def attempt() -> _Answer | AnalysisProgress | None:
        try:
            return ask()
        except ApiProblem as error:
            if not error.problem.type.endswith(":analysis-failed"):
                raise
            st.session_state[failure] = error.problem.detail
            return None

    answer = attempt()
    if answer is None:
        st.rerun()
    if not isinstance(answer, AnalysisProgress):
        return answer

    @st.fragment(run_every=POLL_SECONDS)
    def wait() -> None:
        now = attempt()
        if not isinstance(now, AnalysisProgress):
            st.rerun()
        share = f" · {now.fraction:.0%}" if now.fraction is not None else ""
        html_block(
            f'<div class="wb-waiting"><span>{escaped(doing)}, once for each snapshot… '
            f"{escaped(now.phase)}{share}</span>{progress_bar(now.fraction)}</div>"
        )

    wait()
    return None


def kept_answer(name: str, question: Hashable, ask: Callable[[], _Answer]) -> _Answer:
    """The answer to the latest question under a name; only a new question is asked.

    Meanwhile the page shows what the answer waits for, such as the language model.
    """
    held: tuple[Hashable, _Answer] | None = st.session_state.get(name)
    if held is None or held[0] != question:
        held = st.session_state[name] = (question, _with_phases(ask))
    return held[1]


def _with_phases(ask: Callable[[], _Answer]) -> _Answer:
    place = st.empty()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(ask)
    try:
        while True:
            try:
                answer = future.result(WARM_UP_POLL_SECONDS)
            except TimeoutError:
                place.html(phase_line(client().inference().phase))
            else:
                place.empty()
                return answer
    finally:
        pool.shutdown(wait=False)  # a redrawn page does not wait for the old page's call


def phase_line(phase: str | None) -> str:
    """What the language model's process is doing; None while it works on the answer."""
    text = f"{phase[:1].upper()}{phase[1:]}" if phase else "Waiting for the answer"
    return (
        '<div class="wb-warming"><span class="wb-progress unknown"><i></i></span>'
        f"<span>{escaped(text)}…</span></div>"
    )
