"""Presets as YAML files, and how a preset and overrides become a `RunConfig`.

Uses `schema`; used by the backend and by library users.
"""

from sae_engine.presets.resolve import (
    by_section,
    expand_grid,
    get_preset,
    presets,
    resolve_config,
    unknown_field,
    validate_config,
)

__all__ = [
    "by_section",
    "expand_grid",
    "get_preset",
    "presets",
    "resolve_config",
    "unknown_field",
    "validate_config",
]
