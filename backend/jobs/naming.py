"""Names of runs."""

from __future__ import annotations

from datetime import datetime

from sae_engine.schema.config import RunConfig
from sae_engine.schema.runs import RunCreate

LONGEST_PART = 80


def named_config(config: RunConfig, body: RunCreate) -> RunConfig:
    """The configuration with the requested name; by default `subject` and the time."""
    name = body.name or body.config.get("name")
    if not name:
        name = f"{subject(config)} {datetime.now().astimezone():%m-%d %H:%M:%S}"
    return config.model_copy(update={"name": name})


def member_config(config: RunConfig, body: RunCreate, label: str) -> RunConfig:
    """A sweep member's configuration, named after the sweep and its `label`."""
    start = body.name or body.config.get("name") or subject(config, beside=label)
    return config.model_copy(update={"name": f"{start} {label}"[:200]})


def subject(config: RunConfig, *, beside: str = "") -> str:
    """What a run trains on and how large its SAE is, such as `gemma-2-2b L12 16384 k64`; without
    what is named `beside` it.
    """
    model, sae = config.model, config.sae
    parts = {"model.name": model.name.rstrip("/").rpartition("/")[2][:LONGEST_PART]}
    if model.hook_point is not None:
        parts["model.hook_point"] = model.hook_point[-LONGEST_PART:]
    else:
        parts["model.layer"] = f"L{model.layer}"
        parts["model.site"] = "" if model.site == "resid_post" else model.site
    if sae.pretrained is None:
        field = "sae.d_sae" if sae.expansion_factor is None else "sae.expansion_factor"
        parts[field] = (
            str(sae.d_sae) if sae.expansion_factor is None else f"x{sae.expansion_factor}"
        )
        parts["sae.k"] = f"k{sae.k}"
    varied = {word.partition("=")[0] for word in beside.split()}
    return " ".join(
        part
        for field, part in parts.items()
        if part and varied.isdisjoint({field, field.rpartition(".")[2]})
    )
