"""One feature: when it fires, on what, what it pushes, and what it is like."""

from __future__ import annotations

import random

import streamlit as st

from frontend import charts
from frontend.blocks import empty_state, html_block, link, notice
from frontend.snapshots import follow_latest, snapshot_picker
from frontend.state import (
    bound,
    choice_param,
    chosen_snapshot,
    client,
    int_param,
    num_features,
    param,
    required_run,
    search_box,
    set_param,
    show_linked,
)
from frontend.token_view import chip, context_lines, escaped, largest_activation, logit_column
from frontend.words import density, number, percent
from sae_engine.schema.api import FeatureDetail, LabelUpdate, Run


def show() -> None:
    """The page."""
    run = required_run()
    snapshot = chosen_snapshot(run)
    if snapshot is None:
        html_block(
            empty_state("No features yet", "The first snapshot appears while the run trains.")
        )
        follow_latest(run, None)
        return
    follow_latest(run, snapshot)
    total = num_features(run.id, snapshot.step)
    index = min(int_param("index") or 0, max(0, total - 1))
    feature = client().feature(run.id, index, snapshot=snapshot.step)
    _navigation(run, feature, total)
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        _summary(run, feature)
    with right:
        _graphs(feature)
        _contexts(feature)


def _navigation(run: Run, feature: FeatureDetail, total: int) -> None:
    header, buttons, search = st.columns([2.2, 2.4, 1.3], vertical_alignment="bottom")
    back = {"id": run.id, "snapshot": param("snapshot")}
    with header:
        crumbs = (
            f"{link('./', 'Runs', {})}<span>/</span>{link('run', escaped(run.name), {'id': run.id})}"
            f"<span>/</span>{link('features', 'Features', back)}<span>/</span>"
        )
        show_linked(
            f'<div class="wb-head"><div class="wb-crumb">{crumbs}</div><h1>Feature {feature.index}</h1>'
            f'<span class="wb-state {feature.state}">{feature.state}</span></div>',
            key="head",
        )
    with buttons, st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        last = max(0, total - 1)
        _step("Previous", "left", max(0, feature.index - 1), feature.index == 0)
        _step("Next", "right", min(last, feature.index + 1), feature.index == last)
        st.button(
            "Random", icon=":material/casino:", key="random", on_click=_go_random, args=(total,)
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
            width=110,
        )
        snapshot_picker(run)
    with search:
        search_box(run)


def _step(label: str, key: str, index: int, disabled: bool) -> None:
    st.button(
        label,
        key=key,
        icon=f":material/chevron_{key}:",
        shortcut=key,
        disabled=disabled,
        on_click=set_param,
        args=("index", index),
    )


def _go_random(total: int) -> None:
    set_param("index", random.randrange(max(1, total)))


def _summary(run: Run, feature: FeatureDetail) -> None:
    _label(run, feature)
    facts = [
        ("Density", density(feature.density)),
        ("Max activation", number(feature.max_activation)),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    html_block(f'<dl class="wb-facts">{rows}</dl>')
    tops = "".join(
        f"<tr><td>{chip(t.text)}</td><td class='num'>{t.count:,}</td><td class='num'>{percent(t.precision)}</td>"
        f"<td class='num'>{percent(t.recall)}</td></tr>"
        for t in feature.top_tokens[:10]
    )
    if tops:
        html_block(
            '<h3 class="wb-panel">Top tokens</h3><table class="wb-table small"><thead><tr><th>Token</th>'
            '<th class="num" title="Positions with this token on which the feature fires">Fires</th>'
            '<th class="num" title="Share of the feature\'s firings that are on this token">Precision</th>'
            '<th class="num" title="Share of this token\'s positions on which the feature fires">Recall</th>'
            f"</tr></thead><tbody>{tops}</tbody></table>"
        )
    if feature.neighbours:
        near = "".join(
            "<li>"
            + link(
                "feature",
                f"{n.index}",
                {"id": run.id, "index": n.index, "snapshot": param("snapshot")},
            )
            + f"<span>{escaped(n.label or '')}</span><span class='num'>{n.cosine:+.2f}</span></li>"
            for n in feature.neighbours[:10]
        )
        show_linked(
            '<h3 class="wb-panel" title="Cosine between decoder rows">Nearest features</h3>'
            f'<ul class="wb-neighbours">{near}</ul>',
            key="neighbours",
        )


def _label(run: Run, feature: FeatureDetail) -> None:
    key = f"label:{run.id}:{feature.index}"
    star_key = f"star:{run.id}:{feature.index}"

    def save() -> None:
        update = LabelUpdate(
            label=st.session_state[key].strip(),
            notes=feature.notes,
            starred=st.session_state[star_key],
        )
        client().label(run.id, feature.index, update)

    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.text_input(
            "Label",
            value=feature.label or "",
            key=key,
            max_chars=500,
            placeholder="Describe this feature",
            on_change=save,
            label_visibility="collapsed",
        )
        st.checkbox(
            "★", value=feature.starred, key=star_key, on_change=save, help="Star this feature"
        )


def _graphs(feature: FeatureDetail) -> None:
    if feature.logits is None:
        columns = st.columns(1)
    else:
        columns = st.columns([1, 1, 1.3])
        with columns[0]:
            html_block(
                '<h3 class="wb-panel">Negative logits</h3>'
                + logit_column(feature.logits.negative[:8], sign="negative")
            )
        with columns[1]:
            html_block(
                '<h3 class="wb-panel">Positive logits</h3>'
                + logit_column(feature.logits.positive[:8], sign="positive")
            )
    with columns[-1]:
        html_block('<h3 class="wb-panel">Activations</h3>')
        if feature.density.fired:
            st.plotly_chart(
                charts.histogram_figure(feature.histogram),
                key="histogram",
                config={"displayModeBar": False},
            )


def _contexts(feature: FeatureDetail) -> None:
    if not feature.contexts:
        text = f"It never fired in the {feature.density.seen:,} tokens of this snapshot."
        html_block(notice(text, title="This feature is dead here"))
        return
    key, write = bound(
        "view", choice_param("view", ("snippet", "full"), "snippet"), default="snippet"
    )
    shown = [
        c for group in (feature.contexts, *(i.contexts for i in feature.intervals)) for c in group
    ]
    largest = largest_activation(shown)
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        html_block('<h3 class="wb-section">Top activations</h3>')
        view = st.segmented_control(
            "View",
            ("snippet", "full"),
            key=key,
            on_change=write,
            label_visibility="collapsed",
            required=True,
        )
    full = view == "full"
    parts = [context_lines(feature.contexts, largest, full=full)]
    for interval in feature.intervals:
        if interval.contexts:
            parts.append(
                f'<h3 class="wb-section">Interval {interval.low:.2f} – {interval.high:.2f} '
                f"<small>(contains {percent(interval.share)})</small></h3>"
            )
            parts.append(context_lines(interval.contexts, largest, full=full))
    html_block("".join(parts))


show()
