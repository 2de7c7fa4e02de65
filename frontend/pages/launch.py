"""Launch: choose a recipe, turn its knobs, start."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import streamlit as st

from frontend import forms
from frontend.blocks import html_block, link
from frontend.client import ApiProblem
from frontend.form_widgets import render_field
from frontend.state import cached_presets, client, open_page, param, show_linked, show_problem
from frontend.token_view import escaped
from frontend.words import count, short_count
from sae_engine.schema.api import Preset, RunCreate
from sae_engine.schema.config import RunConfig

PROBLEMS = "launch-problems"
KEYS = "launch-idempotency-keys"


def show() -> None:
    """The page."""
    presets = cached_presets()
    clone = param("clone")
    source, preset, base = _base(presets, clone)
    title, actions = st.columns([4, 1.2], vertical_alignment="center")
    with title:
        html_block('<h1 class="wb-title">New run</h1>')
    show_linked(_preset_cards(presets, preset.name if preset else None), key="presets")
    if clone:
        html_block(
            f'<p class="wb-muted">Starts from the settings of <strong>{escaped(source)}</strong>.</p>'
        )

    scope = clone or (preset.name if preset else "")
    values, changes = _fields(scope, base)
    whole = forms.merged_config(base, changes)
    live_problems = forms.problems(whole)
    with actions:
        clicked = st.button(
            "Start training",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            key="start",
        )
    _plan(values)
    _recipe(preset, changes, whole, cloned=bool(clone))
    if clicked:
        st.session_state[PROBLEMS] = live_problems
        if live_problems:
            st.rerun()
        _start(preset, changes, whole, cloned=bool(clone))


def _base(presets: list[Preset], clone: str | None) -> tuple[str, Preset | None, RunConfig]:
    """What the form starts from: a run's settings, or the chosen preset's."""
    if clone:
        run = client().run(clone)
        return run.name, None, run.config.model_copy(update={"name": ""})
    wanted = param("preset") or "tiny"
    preset = next((p for p in presets if p.name == wanted), presets[0])
    return preset.name, preset, preset.config.model_copy(update={"name": ""})


def _preset_cards(presets: list[Preset], chosen: str | None) -> str:
    return (
        '<div class="wb-presets">' + "".join(_card(p, p.name == chosen) for p in presets) + "</div>"
    )


def _card(preset: Preset, chosen: bool) -> str:
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
    return link(
        "launch", body, {"preset": preset.name}, css="wb-preset on" if chosen else "wb-preset"
    )


def _fields(scope: str, base: RunConfig) -> tuple[dict[str, forms.Value], dict[str, Any]]:
    """Draw the form; returns the values it holds and their differences to `base`."""
    defaults = forms.values_of(base)
    problems: Mapping[str, str] = _placed(st.session_state.get(PROBLEMS, {}))
    if problems:
        count_text = "One setting needs" if len(problems) == 1 else f"{len(problems)} settings need"
        lines = "".join(
            f"<li><code>{escaped(p) or 'run'}</code> {escaped(m)}</li>" for p, m in problems.items()
        )
        html_block(
            f'<div class="wb-notice warning"><strong>{count_text} a change</strong><ul>{lines}</ul></div>'
        )
    specs = {spec.path: spec for spec in forms.field_specs()}
    values: dict[str, forms.Value] = {}

    def draw(path: str) -> None:
        values[path] = render_field(specs[path], defaults[path], scope, problems.get(path))

    name_column, *main = st.columns([1.6, 1, 1.2, 1, 1, 1.2, 1.1])
    with name_column:
        draw("name")
    for column, path in zip(main, forms.MAIN_FIELDS, strict=True):
        with column:
            draw(path)
    rest = [spec for path, spec in specs.items() if path not in (*forms.MAIN_FIELDS, "name")]
    helps = {"run": "", **forms.section_help()}
    for section in ("model", "data", "sae", "train", "index", "run"):
        members = [spec for spec in rest if spec.section == section]
        wrong = any(spec.path in problems for spec in members)
        with st.expander(_SECTION_TITLES[section], expanded=wrong, key=f"section-{section}"):
            if helps[section]:
                st.caption(helps[section])
            columns = st.columns(3)
            for position, spec in enumerate(members):
                with columns[position % 3]:
                    draw(spec.path)
    return values, forms.differences(values, base)


_SECTION_TITLES = {
    "model": "Language model",
    "data": "Text",
    "sae": "Sparse autoencoder",
    "train": "Training",
    "index": "Feature index",
    "run": "Seed",
}


def _placed(problems: Mapping[str, str]) -> dict[str, str]:
    return {forms.field_of_problem(field, message): message for field, message in problems.items()}


def _plan(values: Mapping[str, forms.Value]) -> None:
    total, batch = values["train.total_tokens"], values["train.batch_size_tokens"]
    if isinstance(total, int) and isinstance(batch, int) and batch:
        text = f"{count(total)} tokens in batches of {count(batch)}: {count(-(-total // batch))} steps."
        html_block(f'<p class="wb-muted">{text}</p>')


def _recipe(
    preset: Preset | None, changes: Mapping[str, Any], whole: Mapping[str, Any], *, cloned: bool
) -> None:
    command, file = st.tabs(["Command", "YAML"])
    with command:
        start = (
            forms.differences(forms.values_of(_valid(whole)), RunConfig()) if cloned else changes
        )
        st.code(forms.as_command(preset.name if preset else None, start), "bash", wrap_lines=True)
    with file:
        st.code(forms.as_yaml(whole), "yaml")


def _valid(whole: Mapping[str, Any]) -> RunConfig:
    return RunConfig.model_construct(**whole)


def _start(
    preset: Preset | None, changes: Mapping[str, Any], whole: Mapping[str, Any], *, cloned: bool
) -> None:
    config = dict(whole if cloned else changes)
    name = config.pop("name", None) or None
    body = RunCreate(preset=preset.name if preset else None, config=config, name=name)
    keys: dict[str, str] = st.session_state.setdefault(KEYS, {})
    content = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    key = keys.setdefault(content, str(uuid.uuid4()))
    try:
        run = client().create_run(body, idempotency_key=key)
    except ApiProblem as error:
        if error.unreachable or not error.problem.errors:
            show_problem(error)
            return
        st.session_state[PROBLEMS] = {p.field: p.message for p in error.problem.errors}
        st.rerun()
    keys.pop(content)
    st.session_state.pop(PROBLEMS, None)
    open_page("run", id=run.id)


show()
