"""Compare: the training of several runs; for two of them, their features and lookups."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import cached_runs, client
from frontend.features.lookup import compare_lookups
from frontend.features.matches import show_matches
from frontend.html.blocks import empty_state, heading, html_block, show_linked, tab_link
from frontend.runs.comparison import show_training
from frontend.shell.navigation import name_tab
from frontend.shell.url import bound, choice_param, list_param, param, say_unknown, set_param
from sae_engine.schema.analysis import MAX_COMPARED_RUNS
from sae_engine.schema.runs import Run

PARTS = {"training": "Training", "features": "Features", "tokens": "Tokens"}
_CHOSEN = "chosen-runs"


def show() -> None:
    """The page."""
    name_tab("Compare")
    say_unknown(part=tuple(PARTS))
    part = choice_param("part", tuple(PARTS)) or "training"
    chosen = _chosen()
    show_linked(_header(part, chosen), key="head")
    titles = _choose(chosen)
    if len(chosen) < 2:
        text = "Their differences appear here. You can also tick them in the run list."
        html_block(empty_state("Choose two or more runs", text))
        return
    if part == "training":
        show_training(chosen)
        return
    a, b = _pair(chosen, titles)
    if part == "features":
        show_matches(a, b)
    else:
        compare_lookups(a, b)


def _chosen() -> list[str]:
    """The runs that the URL names, without duplicates."""
    pair = [run_id for name in ("a", "b") if (run_id := param(name))]
    return list(dict.fromkeys([*list_param("runs"), *pair]))[:MAX_COMPARED_RUNS]


def _header(part: str, chosen: list[str]) -> str:
    kept = {"runs": ",".join(chosen), "a": param("a"), "b": param("b")}
    tabs = "".join(
        tab_link("compare", title, kept | {"part": name}, on=name == part)
        for name, title in PARTS.items()
    )
    return heading("Compare", after=f'<nav class="wb-tabs">{tabs}</nav>')


def _choose(chosen: list[str]) -> dict[str, str]:
    """The box of runs, tied to the URL; returns the runs' titles in it."""
    runs = {run.id: run for run in cached_runs()}
    for run_id in chosen:
        if run_id not in runs:
            runs[run_id] = client().run(run_id)
    titles = {run.id: _title(run) for run in runs.values()}
    st.session_state[_CHOSEN] = chosen

    def write() -> None:
        set_param("runs", ",".join(st.session_state[_CHOSEN]))
        for name in ("a", "b", "cursor"):
            set_param(name, None)

    st.multiselect(
        "Runs",
        list(titles),
        key=_CHOSEN,
        on_change=write,
        format_func=titles.__getitem__,
        max_selections=MAX_COMPARED_RUNS,
        placeholder="Choose runs",
        label_visibility="collapsed",
    )
    return titles


def _title(run: Run) -> str:
    return f"{run.name} · {run.id[:4]}"


def _pair(chosen: list[str], titles: dict[str, str]) -> tuple[str, str]:
    """Runs A and B; with more than two runs, boxes choose them."""
    a = choice_param("a", chosen) or chosen[0]
    b = choice_param("b", [run_id for run_id in chosen if run_id != a])
    b = b or next(run_id for run_id in chosen if run_id != a)
    if len(chosen) > 2:
        for name, run_id, other, column in zip("ab", (a, b), (b, a), st.columns(2), strict=True):
            key, write = bound(name, run_id)
            with column, st.container(key=f"run-{name}"):
                st.selectbox(
                    f"Run {name.upper()}",
                    [each for each in chosen if each != other],
                    key=key,
                    on_change=write,
                    format_func=titles.__getitem__,
                )
    return a, b


if __name__ == "__main__":
    show()
