"""The value of a run's setting as text, the same in lists, tables and charts."""

from __future__ import annotations

from frontend.html.format import DASH, number
from sae_engine.schema.fields import value_text
from sae_engine.schema.runs import Run


def setting_text(run: Run, path: str, *, unset: str = DASH) -> str:
    """The value that the run uses; one that it chose itself is marked."""
    value = run.settings[path]
    if path not in run.chosen:
        return unset if value is None else value_text(path, value)
    if value is None:
        return "none"
    text = number(value) if isinstance(value, float) else value_text(path, value)
    return f"{text} (chosen)"
