"""Launch: choose a recipe, turn its knobs, start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import streamlit as st

from frontend.api.cache import cached_presets, client, known_devices
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, link, notice, show_linked
from frontend.html.format import count, short_count
from frontend.html.tokens import escaped
from frontend.launch import forms
from frontend.launch.drafts import Draft, Recipe, start
from frontend.launch.forecast import forecast_block
from frontend.launch.widgets import render_field
from frontend.shell.navigation import open_page
from frontend.shell.url import param, show_problem
from sae_engine.schema.fields import (
    MAX_GRID,
    FieldError,
    FieldSpec,
    Value,
    field_specs,
    grid_size,
    parse_grid,
    section_help,
    values_of,
)
from sae_engine.schema.machine import Preset

PROBLEMS = "launch-problems"
DEFAULT_PRESET = "tiny"

_SECTIONS = {
    "model": "Language model",
    "data": "Text",
    "sae": "Sparse autoencoder",
    "train": "Training",
    "index": "Feature index",
    "run": "Seed",
}


def show() -> None:
    """The page."""
    presets = cached_presets()
    recipe = _recipe(presets)
    title, actions = st.columns([4, 1.2], vertical_alignment="center")
    with title:
        html_block('<h1 class="wb-title">New run</h1>')
    place = actions.empty()
    chosen = None if recipe.source else recipe.preset
    show_linked(_preset_cards(presets, chosen), key="presets")
    if recipe.source:
        name = link("run", f"<strong>{escaped(recipe.source)}</strong>", {"id": recipe.source_id})
        text = f"Starts from the settings of {name}."
        show_linked(f'<p class="wb-muted">{text}</p>', key="source")
    values = _fields(recipe)
    grid = _grid(recipe)
    draft = Draft(recipe, values, grid or {})
    _plan(draft)
    _forecast(draft)
    _texts(draft)
    several = f"Start {count(draft.num_runs)} runs"
    clicked = place.button(
        several if draft.grid else "Start training",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        key="start",
        disabled=grid is None,
    )
    if clicked:
        _start(draft)


def _recipe(presets: list[Preset]) -> Recipe:
    wanted = param("preset") or DEFAULT_PRESET
    preset = next((p for p in presets if p.name == wanted), presets[0])
    base = preset.config.model_copy(update={"name": ""})
    clone = param("clone")
    if clone is None:
        return Recipe(preset.name, preset.name, base, base, "", None)
    run = client().run(clone)
    first = run.config.model_copy(update={"name": ""})
    return Recipe(clone, preset.name, base, first, run.name, run.id)


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


def _fields(recipe: Recipe) -> dict[str, Value]:
    """Draw the form and return the values it holds."""
    defaults = values_of(recipe.first)
    problems = _placed(st.session_state.get(PROBLEMS, {}))
    if problems:
        html_block(_problem_summary(problems))
    specs = dict(field_specs())
    specs["model.device"] = _devices(specs["model.device"], str(defaults["model.device"]))
    values: dict[str, Value] = {}

    def draw(path: str) -> None:
        values[path] = render_field(specs[path], defaults[path], recipe.key, problems.get(path))

    open_fields = ("name", *forms.MAIN_FIELDS)
    for column, path in zip(
        st.columns([1.6, 0.9, 1.2, 1, 0.9, 1.2, 1.1, 1]), open_fields, strict=True
    ):
        with column:
            draw(path)
    helps = section_help()
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


def _devices(spec: FieldSpec, default: str) -> FieldSpec:
    """The device as a choice of those that are there."""
    devices = known_devices()
    gpus = ["cuda"] if sum(device != "cpu" for device in devices) > 1 else []
    choices = dict.fromkeys(["auto", *gpus, *devices, default])
    return spec._replace(kind="choice", choices=tuple(choices))


def _grid(recipe: Recipe) -> dict[str, list[Value]] | None:
    """Values to try; None where they cannot be read, which is said beside them."""
    with st.expander("Sweep: try several values", key="section-sweep"):
        text = st.text_area(
            "Values to try",
            key=f"grid:{recipe.key}",
            placeholder="sae.k = 16, 32\ntrain.lr = 1e-4, 3e-4",
            help="A field and its values on each line; every combination becomes a run. Those that "
            "share model and text are trained together, on one pass over it.",
            max_chars=4_000,
            height=100,
        )
        try:
            grid = parse_grid(text.splitlines())
        except FieldError as error:
            html_block(f'<p class="wb-field-problem">{escaped(str(error))}</p>')
            return None
        if grid_size(grid) > MAX_GRID:
            text = f"That makes {count(grid_size(grid))} runs; {MAX_GRID} is the most."
            html_block(f'<p class="wb-field-problem">{text}</p>')
            return None
    return grid


def _placed(problems: Mapping[str, str]) -> dict[str, str]:
    return {forms.field_of_problem(field, message): message for field, message in problems.items()}


def _problem_summary(problems: Mapping[str, str]) -> str:
    title = "One setting needs" if len(problems) == 1 else f"{len(problems)} settings need"
    lines = "".join(
        f"<li><code>{escaped(path or 'config')}</code> {escaped(message)}</li>"
        for path, message in problems.items()
    )
    return f'<div class="wb-notice error"><strong>{title} a change</strong><ul>{lines}</ul></div>'


def _plan(draft: Draft) -> None:
    total = draft.values["train.total_tokens"]
    batch = draft.values["train.batch_size_tokens"]
    parts: list[str] = []
    if draft.grid:
        tried = " × ".join(f"{len(values)} of {field}" for field, values in draft.grid.items())
        parts.append(f"{count(draft.num_runs)} runs: {tried}.")
    if isinstance(total, int) and isinstance(batch, int):
        steps = total // batch  # as the engine does: what does not fill a batch is left out
        parts.append(f"{count(total)} tokens in batches of {count(batch)}: {count(steps)} steps.")
    html_block(f'<p class="wb-muted">{escaped(" ".join(parts))}</p>')


def _forecast(draft: Draft) -> None:
    """What it would take here, as far as the form can be understood."""
    if forms.problems(draft.whole):
        return
    try:
        found = client().estimate(draft.estimate_request())
    except ApiProblem as error:
        if error.unreachable:
            raise
        html_block(notice(str(error), title="No forecast"))
    else:
        html_block(forecast_block(found))


def _texts(draft: Draft) -> None:
    command, file = st.tabs(["Show command", "Show YAML"])
    with command:
        words = forms.as_command(draft.recipe.preset, draft.changes, draft.grid)
        st.code(words, "bash", wrap_lines=True)
    with file:
        st.code(forms.as_yaml(draft.whole), "yaml")


def _start(draft: Draft) -> None:
    problems = forms.problems(draft.whole)
    if problems:
        _show_again(problems)
    try:
        started = start(draft)
    except ApiProblem as error:
        if not error.problem.errors:
            show_problem(error)
            return
        _show_again({p.field: p.message for p in error.problem.errors})
    else:
        st.session_state.pop(PROBLEMS, None)
        open_page(started.page, id=started.id)


def _show_again(problems: Mapping[str, str]) -> None:
    st.session_state[PROBLEMS] = dict(problems)
    st.rerun()


if __name__ == "__main__":
    show()
