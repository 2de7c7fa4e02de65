"""One feature: when it fires, on what, what it pushes, and what it is like."""

from __future__ import annotations

import random
from collections.abc import Sequence

import streamlit as st

from frontend.api.cache import client, num_features
from frontend.charts.feature import histogram_figure, history_figure
from frontend.charts.plot import show_figure
from frontend.features.labeling import origin_line
from frontend.features.own_text import own_text
from frontend.html.blocks import empty_state, html_block, link, notice, show_linked
from frontend.html.format import count, density, number, percent
from frontend.html.tokens import chip, context_lines, escaped, largest_activation, logit_column
from frontend.shell.snapshots import follow_latest, snapshot_picker
from frontend.shell.url import (
    attempt,
    bound,
    choice_param,
    chosen_snapshot,
    int_param,
    name_tab,
    param,
    required_run,
    search_box,
    set_param,
)
from sae_engine.schema.features import FeatureDetail, Interval, Logits, Neighbour, TokenStatistics
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.runs import Run

TOP_TOKENS = 10
NEIGHBOURS = 10
LOGITS = 8
VIEWS = ("snippet", "full")


def show() -> None:
    """The page."""
    run = required_run()
    snapshot = chosen_snapshot(run)
    follow_latest(run, snapshot)
    if snapshot is None:
        text = "The first snapshot appears here by itself while the run trains."
        html_block(empty_state("No features yet", text))
        return
    last = num_features(run.id, snapshot.step) - 1
    index = min(int_param("index") or 0, last)
    feature = client().feature(run.id, index, snapshot=snapshot.step)
    name_tab(f"Feature {index}", run.name)
    _navigation(run, feature, last)
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        _label(run, feature)
        html_block(_facts(feature) + _top_tokens(feature.top_tokens[:TOP_TOKENS]))
        if feature.neighbours:
            show_linked(_neighbours(run, feature.neighbours[:NEIGHBOURS]), key="neighbours")
        _history(run, feature)
    with right:
        _graphs(feature)
        box = st.container()
        _contexts(feature)
        with box:  # drawn last, as it may wait for the language model
            own_text(run, feature)


def _navigation(run: Run, feature: FeatureDetail, last: int) -> None:
    header, buttons, search = st.columns([1.25, 2.7, 1.25], vertical_alignment="bottom")
    with header:
        show_linked(_heading(run, feature), key="head")
    with buttons, st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        _step("Previous", "left", feature.index - 1, disabled=feature.index == 0)
        _step("Next", "right", feature.index + 1, disabled=feature.index == last)
        st.button(
            "",
            icon=":material/casino:",
            key="random",
            help="A random feature",
            on_click=_go_random,
            args=(last,),
        )
        key, write = bound("index", feature.index)
        st.number_input(
            "Go to",
            min_value=0,
            max_value=last,
            step=1,
            key=key,
            on_change=write,
            label_visibility="collapsed",
            width=90,
        )
        snapshot_picker(run)
    with search:
        search_box(run)


def _heading(run: Run, feature: FeatureDetail) -> str:
    steps = (
        link("./", "Runs", {}),
        link("run", escaped(run.name), {"id": run.id}),
        link("features", "Features", {"id": run.id, "snapshot": param("snapshot")}),
    )
    crumbs = "<span>/</span>".join(steps)
    return (
        f'<div class="wb-head"><div class="wb-crumb">{crumbs}</div>'
        f"<h1>Feature {feature.index}</h1>"
        f'<span class="wb-state {feature.state}">{feature.state}</span></div>'
    )


def _step(label: str, side: str, index: int, *, disabled: bool) -> None:
    st.button(
        label,
        key=side,
        icon=f":material/chevron_{side}:",
        shortcut=side,
        disabled=disabled,
        on_click=set_param,
        args=("index", index),
    )


def _go_random(last: int) -> None:
    set_param("index", random.randint(0, last))


def _label(run: Run, feature: FeatureDetail) -> None:
    # Streamlit ignores the initial value of a widget it knows, so each feature has its own.
    label_key = f"label:{run.id}:{feature.index}"
    notes_key = f"notes:{run.id}:{feature.index}"
    star_key = f"star:{run.id}:{feature.index}"

    def save() -> None:
        update = LabelUpdate(
            label=st.session_state[label_key].strip(),
            notes=st.session_state[notes_key].strip(),
            starred=st.session_state[star_key],
        )
        attempt(lambda: client().label(run.id, feature.index, update))

    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.text_input(
            "Label",
            value=feature.label or "",
            key=label_key,
            max_chars=500,
            placeholder="Describe this feature",
            on_change=save,
            label_visibility="collapsed",
        )
        st.checkbox("★", value=feature.starred, key=star_key, on_change=save)
    st.text_area(
        "Notes",
        value=feature.notes,
        key=notes_key,
        max_chars=5000,
        placeholder="Notes",
        height=68,
        on_change=save,
        label_visibility="collapsed",
    )
    written = client().labels(run.id, [feature.index]) if feature.label else []
    origin = "".join(map(origin_line, written))
    if origin:
        html_block(origin)


def _facts(feature: FeatureDetail) -> str:
    return (
        f'<dl class="wb-facts"><dt>Density</dt><dd>{density(feature.density)}</dd>'
        f"<dt>Max activation</dt><dd>{number(feature.max_activation)}</dd></dl>"
    )


_TOKEN_COLUMNS = (
    ("Fires", "Positions with this token on which the feature fires"),
    ("Precision", "Share of the feature's firings that are on this token"),
    ("Recall", "Share of this token's positions on which the feature fires"),
    ("Lift", "How many times as often as on a random position this token is where it fires"),
)


def _top_tokens(tokens: Sequence[TokenStatistics]) -> str:
    if not tokens:
        return ""
    head = "".join(f'<th class="num" title="{tip}">{name}</th>' for name, tip in _TOKEN_COLUMNS)
    rows = "".join(_top_token(token) for token in tokens)
    return (
        '<h3 class="wb-panel">Top tokens</h3><table class="wb-table small">'
        f"<thead><tr><th>Token</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _top_token(token: TokenStatistics) -> str:
    cells = (
        count(token.count),
        percent(token.precision),
        percent(token.recall),
        number(token.lift),
    )
    numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    return f"<tr><td>{chip(token.text)}</td>{numbers}</tr>"


def _neighbours(run: Run, neighbours: Sequence[Neighbour]) -> str:
    rows = "".join(
        f"<li>{_feature_link(run, near.index)}<span>{escaped(near.label or '')}</span>"
        f'<span class="num">{near.cosine:+.2f}</span></li>'
        for near in neighbours
    )
    return (
        '<h3 class="wb-panel" title="By the cosine between decoder rows">Nearest features</h3>'
        f'<ul class="wb-neighbours">{rows}</ul>'
    )


def _feature_link(run: Run, index: int) -> str:
    query = {"id": run.id, "index": index, "snapshot": param("snapshot")}
    return link("feature", str(index), query)


def _history(run: Run, feature: FeatureDetail) -> None:
    history = client().history(run.id, feature.index)
    if len(history.moments) < 2:
        return
    events = [
        f"{what} at step {count(step)}"
        for what, step in (("born", history.born_step), ("dead", history.died_step))
        if step is not None
    ]
    said = f" <small>({', '.join(events)})</small>" if events else ""
    tip = "Density, and cosine between the decoder row then and now, in every snapshot"
    html_block(f'<h3 class="wb-panel" title="{tip}">While it was trained{said}</h3>')
    show_figure(history_figure(history), key="history")


def _graphs(feature: FeatureDetail) -> None:
    columns = st.columns([2, 1.3]) if feature.logits else st.columns(1)
    if feature.logits:
        with columns[0]:
            html_block(_logits(feature.logits))
    if feature.density.fired:
        with columns[-1]:
            html_block('<h3 class="wb-panel">Activations</h3>')
            show_figure(histogram_figure(feature.histogram), key="histogram")


def _logits(logits: Logits) -> str:
    negative = logit_column(logits.negative[:LOGITS], sign="negative")
    positive = logit_column(logits.positive[:LOGITS], sign="positive")
    return (
        f'<div class="wb-two"><div><h3 class="wb-panel">Negative logits</h3>{negative}</div>'
        f'<div><h3 class="wb-panel">Positive logits</h3>{positive}</div></div>'
    )


def _contexts(feature: FeatureDetail) -> None:
    if not feature.contexts:
        text = f"It never fired in the {count(feature.density.seen)} tokens of this snapshot."
        html_block(notice(text, title="This feature is dead here"))
        return
    key, write = bound("view", choice_param("view", VIEWS) or "snippet", default="snippet")
    with st.container(horizontal=True, horizontal_alignment="distribute", gap="small"):
        html_block('<h3 class="wb-section">Top activations</h3>')
        view = st.segmented_control(
            "View", VIEWS, key=key, on_change=write, label_visibility="collapsed", required=True
        )
    full = view == "full"
    groups = [feature.contexts, *(interval.contexts for interval in feature.intervals)]
    largest = largest_activation(context for group in groups for context in group)
    intervals = "".join(
        _interval_title(interval) + context_lines(interval.contexts, largest, full=full)
        for interval in feature.intervals
        if interval.contexts
    )
    html_block(context_lines(feature.contexts, largest, full=full) + intervals)


def _interval_title(interval: Interval) -> str:
    return (
        f'<h3 class="wb-section">Interval {interval.low:.2f} – {interval.high:.2f} '
        f"<small>(contains {percent(interval.share)})</small></h3>"
    )


if __name__ == "__main__":
    show()
