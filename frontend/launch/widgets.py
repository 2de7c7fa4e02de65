"""The launch form's widgets, one per kind of field; the URL holds what differs from the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable

import streamlit as st

from frontend.html.blocks import html_block
from frontend.html.format import UNSET
from frontend.html.tokens import escaped
from frontend.shell.url import param, set_param
from sae_engine.schema.fields import FieldSpec, Value, parse_value


def render_field(spec: FieldSpec, default: Value, problem: str | None) -> Value:
    """Draw a field and return its value, which is not validated yet; `default` is the recipe's."""
    value = _value(spec, default)
    _WIDGETS.get(spec.kind, _line)(spec, value, default)
    if problem:
        html_block(f'<p class="wb-field-problem">{escaped(problem)}</p>')
    return value


def _value(spec: FieldSpec, default: Value) -> Value:
    given = param(spec.path)
    if given is None:
        return default
    if spec.kind == "text":
        return None if spec.optional and given == UNSET else given
    return parse_value(spec.path, given)


def _line(spec: FieldSpec, _value: Value, default: Value) -> None:
    """A line of text; numbers are typed as in the shell, such as 1e6.

    An empty line unsets an optional field, and brings back the recipe's value of any other.
    """
    given = param(spec.path)
    shown = _text(default) if given is None else "" if spec.optional and given == UNSET else given
    key, write = _tied(spec, shown, default)
    placeholder = UNSET if spec.optional else ""
    st.text_input(spec.name, key=key, on_change=write, help=_help(spec), placeholder=placeholder)


def _switch(spec: FieldSpec, value: Value, default: Value) -> None:
    key, write = _tied(spec, value is True, default)
    st.toggle(spec.name, key=key, on_change=write, help=_help(spec))


def _choice(spec: FieldSpec, value: Value, default: Value) -> None:
    options = [*([UNSET] if spec.optional else []), *spec.choices]
    shown = _text(value) or UNSET
    key, write = _tied(spec, shown if shown in options else options[0], default)
    st.selectbox(spec.name, options, key=key, on_change=write, help=_help(spec))


def _tied(spec: FieldSpec, shown: object, default: Value) -> tuple[str, Callable[[], None]]:
    """Key of a widget that shows a value, and a callback that writes its change into the URL."""
    key = f"url:{spec.path}"
    st.session_state[key] = shown

    def write() -> None:
        chosen = st.session_state[key]
        text = "" if chosen == UNSET else _text(chosen)
        cleared = UNSET if spec.optional else None
        set_param(spec.path, None if text == _text(default) else text or cleared)

    return key, write


def _text(value: Value) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _help(spec: FieldSpec) -> str:
    """Help in Markdown: the field's docstring and its dotted name."""
    return f"{spec.help}\n\n`{spec.path}`"


_WIDGETS = {"bool": _switch, "choice": _choice}
