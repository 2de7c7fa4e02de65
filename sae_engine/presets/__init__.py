"""Recipes kept as YAML files, and the one way from a recipe and overrides to a `RunConfig`.

Fed by `schema`; read by the backend and by whoever trains with the library.
"""

from sae_engine.presets.resolve import (
    expand_grid,
    get_preset,
    presets,
    resolve_config,
    unknown_field,
    validate_config,
)

__all__ = [
    "expand_grid",
    "get_preset",
    "presets",
    "resolve_config",
    "unknown_field",
    "validate_config",
]
