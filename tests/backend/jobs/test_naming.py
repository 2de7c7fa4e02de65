"""Generated names say what a run trains."""

from __future__ import annotations

from typing import Any

import pytest

from backend.jobs.naming import member_config, subject
from sae_engine.presets import resolve_config
from sae_engine.schema.runs import RunCreate


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "tiny-gemma2 L2 512 k16"),
        ({"model": {"name": "/data/models/my-model/", "layer": 7}}, "my-model L7 512 k16"),
        (
            {"model": {"name": "google/gemma-2-2b", "site": "attn_out"}},
            "gemma-2-2b L2 attn_out 512 k16",
        ),
        ({"model": {"hook_point": "model.layers.3.mlp"}}, "tiny-gemma2 model.layers.3.mlp 512 k16"),
        ({"sae": {"d_sae": None, "expansion_factor": 8}}, "tiny-gemma2 L2 x8 k16"),
        ({"sae": {"pretrained": "hub:a/b", "d_sae": None}}, "tiny-gemma2 L2"),
    ],
)
def test_a_name_holds_the_model_the_place_and_the_size(changes: dict[str, Any], name: str) -> None:
    assert subject(resolve_config("quick-test", changes)) == name


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("k=8", "tiny-gemma2 L2 512 k=8"),
        ("k=8 layer=2", "tiny-gemma2 512 k=8 layer=2"),
        ("lr=0.1", "tiny-gemma2 L2 512 k16 lr=0.1"),
        ("model.layer=3 sae.k=1", "tiny-gemma2 512 model.layer=3 sae.k=1"),
    ],
)
def test_a_member_of_a_sweep_says_once_what_varies(label: str, name: str) -> None:
    config = resolve_config("quick-test", {})
    assert member_config(config, RunCreate(preset="quick-test"), label).name == name
    assert member_config(config, RunCreate(name="mine"), label).name == f"mine {label}"
