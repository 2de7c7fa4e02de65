"""Calls that may wait until the language model is loaded, with what they wait for on the page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import streamlit as st

from frontend.api.cache import client
from frontend.html.tokens import escaped

POLL_SECONDS = 0.3

_Answer = TypeVar("_Answer")


def with_progress(call: Callable[[], _Answer]) -> _Answer:
    """Carry out `call`; while it lasts, the page says what it waits for."""
    place = st.empty()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    try:
        while True:
            try:
                answer = future.result(POLL_SECONDS)
            except TimeoutError:
                place.html(waiting_line(client().inference().phase))
            else:
                place.empty()
                return answer
    finally:
        pool.shutdown(wait=False)  # a page that is drawn anew does not wait for the old one's call


def waiting_line(phase: str | None) -> str:
    """A line that says what is being waited for; None is the answer itself."""
    text = f"Warming up: {escaped(phase)}" if phase else "Waiting for an answer"
    return (
        '<div class="wb-warming"><span class="wb-progress unknown"><i></i></span>'
        f"<span>{text}</span></div>"
    )
