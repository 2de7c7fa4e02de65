"""One feature: when it fires, on what, which logits it changes, and which features are similar."""

from __future__ import annotations

import random

import streamlit as st

from frontend.api.cache import client, num_features
from frontend.charts.histograms import activation_figure
from frontend.charts.history import history_figure
from frontend.charts.plot import show_figure
from frontend.features import details
from frontend.features.custom_text import custom_text
from frontend.features.hits import LOOKUP_PARAMS, MATCHES, RANKS, Lookup, Steps, steps
from frontend.features.label_form import label_form
from frontend.features.listing import (
    LISTING_PARAMS,
    MARKS,
    ORDERS,
    SORTS,
    STATES,
    Listing,
    steps_in_list,
)
from frontend.html.blocks import heading, html_block, link, notice, panel_title, show_linked
from frontend.html.format import count
from frontend.html.marks import mark, named
from frontend.html.tokens import chip, escaped
from frontend.shell.limits import say_wrong
from frontend.shell.navigation import name_tab, page_button
from frontend.shell.run_page import SHOWN_CHARS, open_snapshot, search_box, snapshot_picker
from frontend.shell.url import (
    bound_choice,
    bound_number,
    choice_param,
    int_param,
    param,
    say_unknown,
    set_param,
)
from sae_engine.schema.features import FeatureDetail
from sae_engine.schema.runs import Run

VIEWS = ("snippet", "full")
WAY_PARAMS = (*LOOKUP_PARAMS, *LISTING_PARAMS)
"""The lookup or list that led here."""


def show() -> None:
    """The page."""
    run, snapshot = open_snapshot()
    last = num_features(run.id, snapshot.step) - 1
    index = int_param("index")
    if index is None or index > last:
        _no_such_feature(run, last)
        return
    feature = client().feature(run.id, index, snapshot=snapshot.step)
    name_tab(f"Feature {index}", run.name)
    say_unknown(view=VIEWS, match=MATCHES, rank=RANKS)
    lookup = Lookup.of_url()
    found = _steps(run, feature, lookup)
    _navigation(run, feature, last, lookup, found)
    with st.container(key="stack"):
        left, right = st.columns([1, 2.6], gap="large")
    with left:
        label_form(run, feature)
        html_block(details.facts(feature) + details.top_tokens(feature.top_tokens))
        with st.container(key="related"):
            if feature.neighbours:
                nearest = details.nearest_features(run.id, feature.neighbours, param("snapshot"))
                show_linked(nearest, key="neighbours")
            _history(run, feature)
    with right:
        _graphs(feature)
        box = st.container()
        _contexts(feature)
        with box:  # drawn last, because it may wait for the language model
            custom_text(run, feature)


def _steps(run: Run, feature: FeatureDetail, lookup: Lookup) -> Steps | None:
    """The steps in the lookup or else the list that led here; None without either."""
    if lookup.text:
        return steps(run.id, feature.snapshot, lookup, feature.index)
    if param("sort") is None:
        return None
    say_unknown(sort=SORTS, order=ORDERS, state=STATES, mark=MARKS)
    listing = Listing.of_url("filter")
    if listing.problem:
        say_wrong(listing.problem)
        return None
    return steps_in_list(run.id, feature.snapshot, listing, feature.index)


def _no_such_feature(run: Run, last: int) -> None:
    pinned = {"id": run.id, "snapshot": param("snapshot")}
    crumbs = [link("run", escaped(run.name), {"id": run.id}), link("features", "Features", pinned)]
    show_linked(heading("No such feature", crumbs=crumbs), key="head")
    given = (param("index") or "")[:SHOWN_CHARS]
    wrong = f"There is no feature {given}" if given else "This address names no feature"
    html_block(notice(f"{wrong}: this run's features are 0 to {last}."))
    page_button(
        "Browse features",
        "features",
        key="browse",
        primary=True,
        id=run.id,
        snapshot=param("snapshot"),
    )


def _navigation(
    run: Run, feature: FeatureDetail, last: int, lookup: Lookup, found: Steps | None
) -> None:
    header, buttons, search = st.columns([1.25, 2.7, 1.25])
    with header:
        show_linked(_heading(run, feature, lookup, found), key="head")
    with buttons, st.container(horizontal=True, gap="small", key="steps"):
        previous = feature.index - 1 if feature.index > 0 else None
        following = feature.index + 1 if feature.index < last else None
        _step_button("Previous", "left", found.previous if found else previous)
        _step_button("Next", "right", found.next if found else following)
        st.button(
            "",
            icon=":material/casino:",
            key="random",
            help="A random feature",
            on_click=_go_at_random,
            args=(last,),
        )
        bound_number("Go to", "index", 0, last, clears=WAY_PARAMS, show_title=False, width=90)
        snapshot_picker(run)
    with search, st.container(key="steps-search"):
        search_box(run)


def _heading(run: Run, feature: FeatureDetail, lookup: Lookup, found: Steps | None) -> str:
    """Name and state of the feature, with its place in the lookup that led here."""
    pinned = {"id": run.id, "snapshot": param("snapshot")}
    above = link("features", "Features", pinned)
    state = f'<span class="wb-state {feature.state}">{feature.state}</span>'
    state += f" {mark(None, starred=feature.starred)} {named(feature)}"
    absent = ""
    if lookup.text:
        above = link("lookup", "Look up", {**pinned, **lookup.state})
        absent = f"not among the features for {chip(lookup.text)}"
    elif param("sort") is not None:
        shown = {name: param(name) for name in LISTING_PARAMS if name != "filter"}
        above = link("features", "Features", {**pinned, **shown, "q": param("filter")})
        absent = "not found in the list"
    if absent:
        state += f'<span class="wb-muted">{found.note if found else absent}</span>'
    crumbs = (link("run", escaped(run.name), {"id": run.id}), above)
    return heading(f"Feature {feature.index}", crumbs=crumbs, after=state)


def _go_at_random(last: int) -> None:
    set_param("index", random.randint(0, last))
    for name in WAY_PARAMS:
        set_param(name, None)


def _step_button(label: str, side: str, index: int | None) -> None:
    st.button(
        label,
        key=side,
        icon=f":material/chevron_{side}:",
        shortcut=side,
        disabled=index is None,
        on_click=set_param,
        args=("index", index),
    )


def _history(run: Run, feature: FeatureDetail) -> None:
    history = client().history(run.id, feature.index)
    if len(history.moments) > 1:
        html_block(details.history_title(history))
        show_figure(
            history_figure(history),
            key="history",
            about="Density and direction of the feature in every snapshot",
        )


def _graphs(feature: FeatureDetail) -> None:
    columns = st.columns([2, 1.3]) if feature.logits else st.columns(1)
    if feature.logits:
        with columns[0]:
            html_block(details.logit_columns(feature.logits))
    if feature.density.fired:
        with columns[-1]:
            html_block(panel_title("Activations"))
            show_figure(
                activation_figure(feature.histogram),
                key="histogram",
                about="Histogram of activations",
            )


def _contexts(feature: FeatureDetail) -> None:
    if not feature.contexts:
        text = f"It never fired in the {count(feature.density.seen)} tokens of the index."
        html_block(notice(text, title="Dead in this snapshot"))
        return
    view = choice_param("view", VIEWS) or "snippet"
    with st.container(horizontal=True, horizontal_alignment="distribute", gap="small"):
        html_block('<h3 class="wb-section">Top activations</h3>')
        bound_choice("View", "view", VIEWS, view, default="snippet", label=str.capitalize)
    html_block(details.all_contexts(feature, full=view == "full"))


if __name__ == "__main__":
    show()
