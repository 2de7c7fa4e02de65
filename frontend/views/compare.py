"""Two runs side by side: their training, the features they share, what fires on a token."""

from __future__ import annotations

import json

import streamlit as st

from frontend.blocks import badge, empty_state, html_block, link, notice, show_linked
from frontend.cards import metric_text
from frontend.curve_controls import log_choice, x_axis_choice
from frontend.matched_features import show_features
from frontend.matched_tokens import show_tokens
from frontend.overview_charts import overlay_figure, overlay_panels
from frontend.plot import show_figure
from frontend.state import (
    bound,
    choice_param,
    client,
    has_ended,
    live,
    name_tab,
    param,
)
from frontend.token_view import escaped
from frontend.words import DASH
from sae_engine.schema.analysis import Comparison
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import Run

PARTS = {"training": "Training", "features": "Features", "tokens": "Tokens"}
MAX_RUNS = 200  # the newest ones can be chosen from


def show() -> None:
    """The page."""
    name_tab("Compare")
    part = choice_param("part", tuple(PARTS)) or "training"
    show_linked(_header(part), key="head")
    a, b = _choose()
    if a is None or b is None:
        html_block(empty_state("Choose two runs", "Their differences appear here."))
        return
    if part == "training":
        _training(a, b)
    elif part == "features":
        show_features(a, b)
    else:
        show_tokens(a, b)


def _header(part: str) -> str:
    runs = {"a": param("a"), "b": param("b")}
    tabs = "".join(
        link("compare", title, runs | {"part": name}, css="on" if name == part else "")
        for name, title in PARTS.items()
    )
    crumb = link("./", "Runs", {})
    return (
        f'<div class="wb-head"><div class="wb-crumb">{crumb}</div>'
        f'<h1>Compare</h1><nav class="wb-tabs">{tabs}</nav></div>'
    )


def _choose() -> tuple[str | None, str | None]:
    """Two boxes of runs, tied to the URL."""
    runs = {run.id: run for run in client().runs(limit=MAX_RUNS).items}
    chosen: list[str | None] = []
    for name, column in zip(("a", "b"), st.columns(2), strict=True):
        run_id = param(name)
        if run_id is not None and run_id not in runs:
            runs[run_id] = client().run(run_id)
        key, write = bound(name, run_id)
        with column, st.container(key=f"run-{name}"):
            st.selectbox(
                f"Run {name.upper()}",
                list(runs),
                key=key,
                on_change=write,
                format_func=lambda i: _title(runs[i]),
                placeholder="Choose a run",
            )
        chosen.append(run_id)
    return chosen[0], chosen[1]


def _title(run: Run) -> str:
    return f"{run.name} · {run.id[:4]}"


def _training(a: str, b: str) -> None:
    def body() -> None:
        found = client().compare([a, b])
        left, right = st.columns(2, gap="large")
        with left:
            html_block(_differences(found))
        with right:
            html_block(_metrics(found))
        _curves(found)

    live(body, active=not all(has_ended(client().run(run_id)) for run_id in (a, b)))


def _heads(runs: list[Run]) -> str:
    return "".join(
        f'<th class="wb-run-{"ab"[number]}">{escaped(run.name)} {badge(run.status)}</th>'
        for number, run in enumerate(runs)
    )


def _differences(found: Comparison) -> str:
    title = '<h3 class="wb-panel">Settings that differ</h3>'
    if not found.differences:
        return title + notice("Both runs have the same settings.")
    rows = "".join(
        f"<tr><td><code>{escaped(difference.field)}</code></td>"
        + "".join(f"<td>{_setting(value)}</td>" for value in difference.values)
        + "</tr>"
        for difference in found.differences
    )
    return (
        f'{title}<table class="wb-table small"><thead><tr><th>Setting</th>{_heads(found.runs)}'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _setting(value: object) -> str:
    if value is None:
        return DASH
    return escaped(value if isinstance(value, str) else json.dumps(value))


def _metrics(found: Comparison) -> str:
    names = [name for name in METRICS if any(name in run.metrics for run in found.runs)]
    title = '<h3 class="wb-panel">Latest measurements</h3>'
    if not names:
        return title + notice("Neither run has measured anything yet.")
    rows = "".join(
        f'<tr><td title="{escaped(METRICS[name].help)}">{escaped(METRICS[name].title)}</td>'
        + "".join(f'<td class="num">{metric_text(run, name)}</td>' for run in found.runs)
        + "</tr>"
        for name in names
    )
    return (
        f'{title}<table class="wb-table small"><thead><tr><th>Metric</th>{_heads(found.runs)}'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _curves(found: Comparison) -> None:
    panels = overlay_panels(found.curves)
    if not panels:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        x_axis = x_axis_choice()
        log_y = log_choice()
    names = [f"{letter} · {run.name}" for letter, run in zip("AB", found.runs, strict=True)]
    columns = st.columns(2)
    for position, panel in enumerate(panels):
        with columns[position % 2]:
            drawn = overlay_figure(panel, found.curves, names, x_axis=x_axis, log_y=log_y)
            show_figure(drawn, key=f"chart-{panel.metrics[0]}")


if __name__ == "__main__":
    show()
