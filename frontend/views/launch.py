"""New run: choose a preset, adjust its settings, see the forecast, start."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from frontend.api.cache import cached_presets, client
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, link, notice, show_linked
from frontend.html.format import count, counted
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
"""What is wrong with the form, by field."""
CHECKED = "launch-checked"
"""The content of the form that these problems are of."""


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
    shown = st.session_state.get(PROBLEMS, {})
    form = draw_fields(recipe, shown)
    grid = draw_grid(shown.get(forms.GRID))
    draft = Draft(recipe, form.values, grid or {})
    wrong = draft.problems
    _show_changed(draft, wrong)
    with form.below_text:
        show_preview(draft)
    html_block(f'<p class="wb-muted">{escaped(_plan(draft))}</p>')
    if not wrong:
        _forecast(draft)
    command, file = st.tabs(["Command", "YAML"])
    with command:
        words = forms.as_command(recipe.preset, draft.changes, draft.grid)
        st.code(words, "bash", wrap_lines=True)
    with file:
        st.code(forms.as_yaml(draft.whole), "yaml")
    if place.button(
        f"Start {counted(draft.num_runs, 'run')}" if draft.grid else "Start training",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        key="start",
        disabled=grid is None or bool(wrong),
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
        parts.append(f"{counted(draft.num_runs, 'run')}: {tried}.")
    if isinstance(total, int) and isinstance(batch, int):
        steps = total // batch  # like the engine, which drops an incomplete batch
        parts.append(f"{count(total)} tokens in batches of {count(batch)}: {count(steps)} steps.")
    return " ".join(parts)


def _forecast(draft: Draft) -> None:
    """The draft's forecast on this machine."""
    try:
        found = client().estimate(draft.estimate_request())
    except ApiProblem as error:
        if error.unreachable:
            raise
        html_block(notice(str(error), title="Can't estimate"))
    else:
        html_block(forecast_block(found))


def _start(draft: Draft) -> None:
    try:
        started = start(draft)
    except ApiProblem as error:
        if not error.problem.errors:
            show_problem(error)
            return
        _redraw_with(forms.placed({p.field: p.message for p in error.problem.errors}))
    else:
        open_page(started.page, id=started.id)


def _show_changed(draft: Draft, problems: Mapping[str, str]) -> None:
    """Show the problems of a changed form; those that the server found stay until it changes."""
    content = [draft.recipe.preset, draft.values, draft.grid]
    if st.session_state.get(CHECKED) != content:
        st.session_state[CHECKED] = content
        if problems != st.session_state.get(PROBLEMS, {}):
            _redraw_with(problems)


def _redraw_with(problems: Mapping[str, str]) -> None:
    st.session_state[PROBLEMS] = dict(problems)
    st.rerun()


if __name__ == "__main__":
    show()
