"""Names of runs."""

from __future__ import annotations

from datetime import datetime

from sae_engine.schema.config import RunConfig
from sae_engine.schema.runs import RunCreate


def named_config(config: RunConfig, body: RunCreate) -> RunConfig:
    """The configuration with the requested name; by default the preset and the time."""
    name = body.name or body.config.get("name")
    if not name:
        recipe = body.preset or config.name or "run"
        name = f"{recipe} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
    return config.model_copy(update={"name": name})


def member_config(config: RunConfig, body: RunCreate, label: str) -> RunConfig:
    """A sweep member's configuration, named after the sweep and its `label`."""
    name = f"{body.name or body.config.get('name') or body.preset or config.name or 'run'} {label}"
    return config.model_copy(update={"name": name[:200]})
