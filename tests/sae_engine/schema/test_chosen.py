"""Settings that a configuration leaves to the run, and the values the run chose for them."""

from __future__ import annotations

from typing import Any

import pytest

from sae_engine.presets import resolve_config
from sae_engine.schema.records import PlanRecord

PLAN = PlanRecord(
    total_steps=9,
    total_tokens=4608,
    d_in=8,
    d_sae=64,
    k=4,
    lr=2.3e-4,
    device="cuda:1",
    dtype="bfloat16",
    readers=1,
    documents="lines",
    dead_feature_threshold=36,
    pretrained_format="saelens",
)
EVERY_CHOICE = {
    "model.device": "cuda:1",
    "model.dtype": "bfloat16",
    "model.readers": 1,
    "data.documents": "lines",
    "sae.pretrained_format": "saelens",
    "sae.d_sae": 64,
    "train.total_tokens": 4608,
    "train.lr": 2.3e-4,
    "train.dead_feature_threshold": 36,
}
OPEN_SIZE = {"sae": {"expansion_factor": 8}, "train": {"num_epochs": 1}}


def test_a_run_chooses_everything_that_is_unset_or_auto() -> None:
    config = resolve_config("tiny", OPEN_SIZE)
    assert PLAN.chosen(config) == EVERY_CHOICE


@pytest.mark.parametrize(
    ("path", "section"),
    [
        ("train.lr", {"train": {"lr": 1e-3, "num_epochs": 1}}),
        ("model.dtype", {"model": {"dtype": "float32"}}),
        ("sae.d_sae", {"sae": {"d_sae": 64, "k": 4}}),
        ("train.total_tokens", {"train": {"total_tokens": 5000}}),
    ],
)
def test_what_a_configuration_sets_is_not_chosen(path: str, section: dict[str, Any]) -> None:
    config = resolve_config("tiny", OPEN_SIZE | section)
    assert set(EVERY_CHOICE) - set(PLAN.chosen(config)) == {path}


@pytest.mark.parametrize("k", [4, None])
def test_an_imported_sae_chooses_no_training_and_may_have_no_k(k: int | None) -> None:
    config = resolve_config("tiny", {"sae": {"pretrained": "theirs"}})
    chosen = PLAN.model_copy(update={"k": k, "dtype": None}).chosen(config)
    assert not any(path.startswith("train.") for path in chosen)
    assert "model.dtype" not in chosen
    assert ("sae.k" in chosen) == (k is None)
    assert chosen.get("sae.k") is None
