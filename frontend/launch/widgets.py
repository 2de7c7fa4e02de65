"""The launch form's widgets, one per kind of field."""

from __future__ import annotations

import json
import math

import streamlit as st

from frontend.html.blocks import html_block
from frontend.html.format import UNSET
from frontend.html.tokens import escaped
from sae_engine.schema.fields import FieldSpec, Value, parse_value

_LARGEST_INT = (1 << 53) - 1


def render_field(spec: FieldSpec, default: Value, scope: str, problem: str | None) -> Value:
    """Draw a field and return its value; `scope` keeps values of different recipes apart."""
    key = field_key(scope, spec.path)
    value = _WIDGETS[spec.kind](spec, default, key)
    if problem:
        html_block(f'<p class="wb-field-problem">{escaped(problem)}</p>')
    return value


def field_key(scope: str, path: str) -> str:
    """Key of a field's widget."""
    return f"field:{scope}:{path}"


def _help(spec: FieldSpec) -> str:
    """Help in Markdown: the field's docstring and its dotted name."""
    return f"{spec.help}\n\n`{spec.path}`"


def _integer(spec: FieldSpec, default: Value, key: str) -> Value:
    return st.number_input(
        spec.name,
        min_value=None if spec.minimum is None else int(spec.minimum),
        max_value=_LARGEST_INT if spec.maximum is None else int(spec.maximum),
        value=default if isinstance(default, int) else None,
        step=1,
        key=key,
        help=_help(spec),
        placeholder=UNSET,
    )


def _float(spec: FieldSpec, default: Value, key: str) -> Value:
    return st.number_input(
        spec.name,
        min_value=None if spec.minimum is None else float(spec.minimum),
        max_value=None if spec.maximum is None else float(spec.maximum),
        value=float(default) if isinstance(default, int | float) else None,
        step=_float_step(default),
        format="%.6g",
        key=key,
        help=_help(spec),
        placeholder=UNSET,
    )


def _float_step(default: Value) -> float:
    """A tenth of the default's power of ten."""
    if not isinstance(default, int | float) or default <= 0:
        return 1e-4
    return 10.0 ** (math.floor(math.log10(default)) - 1)


def _boolean(spec: FieldSpec, default: Value, key: str) -> Value:
    return st.toggle(spec.name, value=bool(default), key=key, help=_help(spec))


def _text(spec: FieldSpec, default: Value, key: str) -> Value:
    # An upload sets such values too, and Streamlit complains about a value beside a default.
    st.session_state.setdefault(key, str(default or ""))
    text = st.text_input(
        spec.name,
        max_chars=spec.max_length,
        key=key,
        help=_help(spec),
        placeholder=UNSET if spec.optional else "",
    )
    return text or (None if spec.optional else "")


def _list(spec: FieldSpec, default: Value, key: str) -> Value:
    text = st.text_input(
        spec.name,
        value="" if default is None else json.dumps(default),
        key=key,
        help=_help(spec),
        placeholder=UNSET,
    )
    return parse_value(spec.path, text) if text else None


def _choice(spec: FieldSpec, default: Value, key: str) -> Value:
    options = [*([UNSET] if spec.optional else []), *spec.choices]
    chosen = st.selectbox(
        spec.name,
        options,
        index=options.index(str(default)) if str(default) in options else 0,
        key=key,
        help=_help(spec),
    )
    return None if spec.optional and chosen == UNSET else chosen


_WIDGETS = {
    "int": _integer,
    "float": _float,
    "bool": _boolean,
    "text": _text,
    "choice": _choice,
    "list": _list,
}
