"""New run: choose a preset, adjust its settings, see the forecast, start."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from frontend.api.cache import cached_presets, client
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, link, notice, show_linked
from frontend.html.format import count
from frontend.html.tokens import escaped
from frontend.launch import forms
from frontend.launch.drafts import Draft, start
from frontend.launch.fields import draw_fields, draw_grid
from frontend.launch.forecast import forecast_block
from frontend.launch.own_text import show_preview
from frontend.launch.presets import preset_cards, recipe_of
from frontend.shell.navigation import open_page
from frontend.shell.problems import show_problem
from sae_engine.schema.fields import value_text

PROBLEMS = "launch-problems"


def show() -> None:
    """The page."""
    presets = cached_presets()
    recipe = recipe_of(presets)
    title, actions = st.columns([4, 1.2], vertical_alignment="center")
    with title:
        html_block('<h1 class="wb-title">New run</h1>')
    place = actions.empty()
    source = recipe.source
    show_linked(preset_cards(presets, None if source else recipe.preset), key="presets")
    if source:
        name = link("run", f"<strong>{escaped(source.name)}</strong>", {"id": source.id})
        show_linked(f'<p class="wb-muted">Starts from the settings of {name}.</p>', key="source")
    form = draw_fields(recipe, st.session_state.get(PROBLEMS, {}))
    grid = draw_grid(recipe)
    draft = Draft(recipe, form.values, grid or {})
    with form.below_text:
        show_preview(draft)
    html_block(f'<p class="wb-muted">{escaped(_plan(draft))}</p>')
    _forecast(draft)
    command, file = st.tabs(["Command", "YAML"])
    with command:
        words = forms.as_command(recipe.preset, draft.changes, draft.grid)
        st.code(words, "bash", wrap_lines=True)
    with file:
        st.code(forms.as_yaml(draft.whole), "yaml")
    if place.button(
        f"Start {count(draft.num_runs)} runs" if draft.grid else "Start training",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        key="start",
        disabled=grid is None,
    ):
        _start(draft)


def _plan(draft: Draft) -> str:
    """The runs, tokens and steps of a draft in words."""
    total = draft.values["train.total_tokens"]
    batch = draft.values["train.batch_size_tokens"]
    parts: list[str] = []
    if draft.grid:
        tried = " × ".join(
            f"{field} = {', '.join(value_text(field, value) for value in values)}"
            for field, values in draft.grid.items()
        )
        parts.append(f"{count(draft.num_runs)} runs: {tried}.")
    if isinstance(total, int) and isinstance(batch, int):
        steps = total // batch  # like the engine, which drops an incomplete batch
        parts.append(f"{count(total)} tokens in batches of {count(batch)}: {count(steps)} steps.")
    return " ".join(parts)


def _forecast(draft: Draft) -> None:
    """The draft's forecast on this machine; nothing while the form has errors."""
    if forms.problems(draft.whole):
        return
    try:
        found = client().estimate(draft.estimate_request())
    except ApiProblem as error:
        if error.unreachable:
            raise
        html_block(notice(str(error), title="Can't estimate"))
    else:
        html_block(forecast_block(found))


def _start(draft: Draft) -> None:
    problems = forms.problems(draft.whole)
    if problems:
        _redraw_with(problems)
    try:
        started = start(draft)
    except ApiProblem as error:
        if not error.problem.errors:
            show_problem(error)
            return
        _redraw_with({p.field: p.message for p in error.problem.errors})
    else:
        st.session_state.pop(PROBLEMS, None)
        open_page(started.page, id=started.id)


def _redraw_with(problems: Mapping[str, str]) -> None:
    st.session_state[PROBLEMS] = dict(problems)
    st.rerun()


if __name__ == "__main__":
    show()
