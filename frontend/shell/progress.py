"""Answers that are computed on demand: a page shows how far they are until they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, notice, progress_bar
from frontend.html.tokens import escaped
from sae_engine.schema.analysis import AnalysisProgress

POLL_SECONDS = 1

_Answer = TypeVar("_Answer")


def awaited(
    ask: Callable[[], _Answer | AnalysisProgress], *, key: str, what: str
) -> _Answer | None:
    """The answer; or None, with the page saying how far it is and drawn again once it is there.

    A computation that failed is not repeated before someone wants it.
    """
    failure = f"failed:{key}"
    if failure in st.session_state:
        html_block(notice(st.session_state[failure], level="warning", title=f"No {what}"))
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
            f'<div class="wb-waiting"><span>Computing the {escaped(what)}, once: '
            f"{escaped(now.phase)}{share}</span>{progress_bar(now.fraction)}</div>"
        )

    wait()
    return None
