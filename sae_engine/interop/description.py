"""What an SAE's files say about it, and small readers of their settings. No torch.

Made by `formats` and the modules it uses; read by `load`, `training` and the backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sae_engine.interop.places import Place
from sae_engine.schema.config import PretrainedFormat

TITLES: Mapping[PretrainedFormat, str] = {
    "sae-workbench": "SAE Workbench",
    "saelens": "SAELens",
    "sparsify": "sparsify",
    "gemma-scope": "Gemma Scope",
    "qwen-scope": "Qwen-Scope",
    "dictionary_learning": "dictionary_learning",
}


class Description(NamedTuple):
    """What an SAE's files say about it."""

    format: PretrainedFormat
    model_name: str | None
    """As a Hugging Face id where it is known."""
    place: Place
    notes: list[str]
    """Notes for users of the SAE."""
    settings: Mapping[str, Any]
    removes_mean: bool = False
    """Whether its input is an activation minus the mean over the activation's coordinates."""

    @property
    def title(self) -> str:
        return TITLES[self.format]


def quoted(value: object) -> str:
    """A value of a file as an error message quotes it: on one line, and not all of a long one."""
    return f"{str(value)!r:.80}"


def section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def text_of(settings: Mapping[str, Any], name: str) -> str | None:
    value = settings.get(name)
    return value if isinstance(value, str) and value else None
