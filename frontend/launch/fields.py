"""The launch form: a widget for every field of the configuration, and the values to sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from frontend.api.cache import known_devices
from frontend.html.blocks import html_block
from frontend.html.format import counted
from frontend.html.tokens import escaped
from frontend.launch.drafts import Recipe
from frontend.launch.forms import GRID, MAIN_FIELDS, TEXT_FIELDS
from frontend.launch.own_text import upload_box
from frontend.launch.widgets import render_field
from frontend.shell.url import bound, param
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

SECTIONS = {
    "model": "Language model",
    "data": "Text",
    "sae": "Sparse autoencoder",
    "train": "Training",
    "index": "Feature index",
    "run": "Seed",
}


class Form(NamedTuple):
    """The form as it is drawn."""

    values: dict[str, Value]
    """By field."""
    below_text: DeltaGenerator
    """A place below the fields of the text."""


def draw_fields(recipe: Recipe, problems: Mapping[str, str]) -> Form:
    """Draw the form with each of the `problems`, by field, next to its field."""
    defaults = values_of(recipe.initial)
    if problems:
        html_block(_summary(problems))
    specs = dict(field_specs())
    specs["model.device"] = _devices(specs["model.device"], str(defaults["model.device"]))
    values: dict[str, Value] = {}

    def draw(path: str) -> None:
        values[path] = render_field(specs[path], defaults[path], problems.get(path))

    visible = ("name", *MAIN_FIELDS)
    for column, path in zip(st.columns([1.6, 0.9, 1.2, 1, 0.9, 1.2, 1.1, 1]), visible, strict=True):
        with column:
            draw(path)
    places = st.columns([2.4, 1, 2.4], vertical_alignment="bottom")
    with places[-1]:
        upload_box()
    for column, path in zip(places, TEXT_FIELDS, strict=False):
        with column:
            draw(path)
    visible += TEXT_FIELDS
    below_text = st.container()
    helps = section_help()
    halves = st.columns(2)
    for place, (section, title) in enumerate(SECTIONS.items()):
        members = [s.path for s in specs.values() if s.section == section]
        collapsed = [path for path in members if path not in visible]
        wrong = any(path in problems for path in collapsed)
        with halves[place % 2], st.expander(title, expanded=wrong, key=f"section-{section}"):
            if section in helps:
                st.caption(helps[section])
            columns = st.columns(2)
            for position, path in enumerate(collapsed):
                with columns[position % 2]:
                    draw(path)
    return Form(values, below_text)


def _devices(spec: FieldSpec, default: str) -> FieldSpec:
    """The device field as a choice of this machine's devices."""
    devices = known_devices()
    gpus = ["cuda"] if sum(device != "cpu" for device in devices) > 1 else []
    choices = dict.fromkeys(["auto", *gpus, *devices, default])
    return spec._replace(kind="choice", choices=tuple(choices))


def _summary(problems: Mapping[str, str]) -> str:
    lines = "".join(
        f"<li><code>{escaped(path or 'config')}</code>: {escaped(message)}</li>"
        for path, message in problems.items()
    )
    title = f"Fix {counted(len(problems), 'setting')}"
    return f'<div class="wb-notice error"><strong>{title}</strong><ul>{lines}</ul></div>'


def draw_grid(problem: str | None) -> dict[str, list[Value]] | None:
    """The values to sweep, by field; None if they cannot be read, with the reason on the page.

    `problem` is one of the values, if there is one.
    """
    key, write = bound(GRID, param(GRID) or "")
    with st.expander("Sweep: try several values", expanded=bool(param(GRID)), key="section-sweep"):
        text = st.text_area(
            "Values to try",
            key=key,
            on_change=write,
            placeholder="sae.k = 16, 32\ntrain.lr = 1e-4, 3e-4",
            help="One setting and its values per line. Every combination becomes a run; runs with "
            "the same model and text train together in one pass over the text.",
            height=100,
        )
        grid = None
        try:
            grid = parse_grid(text.splitlines())
        except FieldError as error:
            problem = str(error)
        else:
            size = grid_size(grid)
            if size > MAX_GRID:
                grid, problem = None, f"This sweep has {size:,} runs; the limit is {MAX_GRID}."
        if problem:
            html_block(f'<p class="wb-field-problem">{escaped(problem)}</p>')
        return grid
