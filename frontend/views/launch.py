"""Launch: choose a recipe, turn its knobs, start."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import streamlit as st

from frontend import forms
from frontend.blocks import html_block, link, show_linked
from frontend.client import ApiProblem
from frontend.form_widgets import render_field
from frontend.state import cached_presets, client, open_page, param, show_problem
from frontend.token_view import escaped
from frontend.words import count, short_count
from sae_engine.schema.config import RunConfig
from sae_engine.schema.machine import Preset
from sae_engine.schema.runs import RunCreate

PROBLEMS = "launch-problems"
KEYS = "launch-idempotency-keys"
DEFAULT_PRESET = "tiny"

_SECTIONS = {
    "model": "Language model",
    "data": "Text",
    "sae": "Sparse autoencoder",
    "train": "Training",
    "index": "Feature index",
    "run": "Seed",
}


class Recipe(NamedTuple):
    """Where the form starts."""

    key: str
    """Keeps the form's values apart from those of other recipes."""
    preset: str
    """The preset that is sent."""
    base: RunConfig
    """Its configuration: only differences to this are sent."""
    first: RunConfig
    """Values the form shows at first."""
    source: str
    """Name of the run that is cloned; empty for a preset."""


class Draft(NamedTuple):
    """What the form holds now."""

    recipe: Recipe
    values: dict[str, forms.Value]

    @property
    def changes(self) -> dict[str, Any]:
        """Differences to the recipe's base."""
        return forms.differences(self.values, self.recipe.base)

    @property
    def whole(self) -> dict[str, Any]:
        """The whole configuration, not validated."""
        return forms.merged_config(self.recipe.base, self.changes)


def show() -> None:
    """The page."""
    presets = cached_presets()
    recipe = _recipe(presets)
    title, actions = st.columns([4, 1.2], vertical_alignment="center")
    with title:
        html_block('<h1 class="wb-title">New run</h1>')
    with actions:
        clicked = st.button(
            "Start training",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            key="start",
        )
    chosen = None if recipe.source else recipe.preset
    show_linked(_preset_cards(presets, chosen), key="presets")
    if recipe.source:
        text = f"Starts from the settings of <strong>{escaped(recipe.source)}</strong>."
        html_block(f'<p class="wb-muted">{text}</p>')
    draft = Draft(recipe, _fields(recipe))
    _plan(draft.values)
    _texts(draft)
    if clicked:
        _start(draft)


def _recipe(presets: list[Preset]) -> Recipe:
    wanted = param("preset") or DEFAULT_PRESET
    preset = next((p for p in presets if p.name == wanted), presets[0])
    base = preset.config.model_copy(update={"name": ""})
    clone = param("clone")
    if clone is None:
        return Recipe(preset.name, preset.name, base, base, "")
    run = client().run(clone)
    return Recipe(clone, preset.name, base, run.config.model_copy(update={"name": ""}), run.name)


def _preset_cards(presets: Iterable[Preset], chosen: str | None) -> str:
    shown = "".join(_preset_card(preset, preset.name == chosen) for preset in presets)
    return f'<div class="wb-presets">{shown}</div>'


def _preset_card(preset: Preset, chosen: bool) -> str:
    sae, train = preset.config.sae, preset.config.train
    facts = [
        f"{count(sae.d_sae)} latents" if sae.d_sae else f"{sae.expansion_factor or 8}× wide",
        f"k {sae.k}",
        f"{short_count(train.total_tokens)} tokens" if train.total_tokens else "by epochs",
    ]
    body = (
        f"<strong>{escaped(preset.name)}</strong><span>{escaped(preset.description)}</span>"
        f"<small>{' · '.join(facts)}</small>"
    )
    css = "wb-preset on" if chosen else "wb-preset"
    return link("launch", body, {"preset": preset.name}, css=css)


def _fields(recipe: Recipe) -> dict[str, forms.Value]:
    """Draw the form and return the values it holds."""
    defaults = forms.values_of(recipe.first)
    problems = _placed(st.session_state.get(PROBLEMS, {}))
    if problems:
        html_block(_problem_summary(problems))
    specs = {spec.path: spec for spec in forms.field_specs()}
    values: dict[str, forms.Value] = {}

    def draw(path: str) -> None:
        values[path] = render_field(specs[path], defaults[path], recipe.key, problems.get(path))

    open_fields = ("name", *forms.MAIN_FIELDS)
    for column, path in zip(st.columns([1.6, 1, 1.2, 1, 1, 1.2, 1.1]), open_fields, strict=True):
        with column:
            draw(path)
    helps = forms.section_help()
    halves = st.columns(2)
    for place, (section, title) in enumerate(_SECTIONS.items()):
        members = [s.path for s in specs.values() if s.section == section]
        folded = [path for path in members if path not in open_fields]
        wrong = any(path in problems for path in folded)
        with halves[place % 2], st.expander(title, expanded=wrong, key=f"section-{section}"):
            if section in helps:
                st.caption(helps[section])
            columns = st.columns(2)
            for position, path in enumerate(folded):
                with columns[position % 2]:
                    draw(path)
    return values


def _placed(problems: Mapping[str, str]) -> dict[str, str]:
    return {forms.field_of_problem(field, message): message for field, message in problems.items()}


def _problem_summary(problems: Mapping[str, str]) -> str:
    title = "One setting needs" if len(problems) == 1 else f"{len(problems)} settings need"
    lines = "".join(
        f"<li><code>{escaped(path or 'config')}</code> {escaped(message)}</li>"
        for path, message in problems.items()
    )
    return f'<div class="wb-notice error"><strong>{title} a change</strong><ul>{lines}</ul></div>'


def _plan(values: Mapping[str, forms.Value]) -> None:
    total, batch = values["train.total_tokens"], values["train.batch_size_tokens"]
    if isinstance(total, int) and isinstance(batch, int):
        steps = -(-total // batch)
        text = f"{count(total)} tokens in batches of {count(batch)}: {count(steps)} steps."
        html_block(f'<p class="wb-muted">{text}</p>')


def _texts(draft: Draft) -> None:
    command, file = st.tabs(["Show command", "Show YAML"])
    with command:
        st.code(forms.as_command(draft.recipe.preset, draft.changes), "bash", wrap_lines=True)
    with file:
        st.code(forms.as_yaml(draft.whole), "yaml")


def _start(draft: Draft) -> None:
    problems = forms.problems(draft.whole)
    if problems:
        _show_again(problems)
    changes = draft.changes
    name = changes.pop("name", None)
    body = RunCreate.model_validate(
        {"preset": draft.recipe.preset, "config": changes, "name": name}
    )
    keys: dict[str, str] = st.session_state.setdefault(KEYS, {})
    content = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    try:
        run = client().create_run(body, idempotency_key=keys.setdefault(content, str(uuid.uuid4())))
    except ApiProblem as error:
        if not error.problem.errors:
            show_problem(error)
            return
        _show_again({p.field: p.message for p in error.problem.errors})
    else:
        keys.pop(content)
        st.session_state.pop(PROBLEMS, None)
        open_page("run", id=run.id)


def _show_again(problems: Mapping[str, str]) -> None:
    st.session_state[PROBLEMS] = dict(problems)
    st.rerun()


if __name__ == "__main__":
    show()
