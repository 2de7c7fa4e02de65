"""A setting's value as text: set, chosen by the run, unset, or not a setting of this SAE."""

from __future__ import annotations

import pytest

from frontend.runs.columns import columns_of
from frontend.runs.list import grouped
from frontend.runs.setting_text import setting_text
from sae_engine.presets import resolve_config
from tests.frontend.samples import make_run


@pytest.mark.parametrize(
    ("path", "chosen", "text"),
    [
        ("train.lr", {"train.lr": 0.00023456}, "2.35e-04 (chosen)"),
        ("sae.expansion_factor", {"train.lr": 0.1}, "–"),
        ("model.device", {"model.device": "cuda:1"}, "cuda:1 (chosen)"),
        ("model.device", {}, "auto"),
        ("sae.k", {"sae.k": None}, "none"),
        ("sae.k", {}, "16"),
        ("train.dead_feature_threshold", {"train.dead_feature_threshold": 4687}, "4687 (chosen)"),
    ],
)
def test_a_value_is_the_one_the_run_uses(path: str, chosen: dict[str, object], text: str) -> None:
    assert setting_text(make_run(chosen=chosen), path) == text


def test_a_width_that_follows_from_the_model_is_stated_once_known() -> None:
    config = resolve_config("tiny", {"sae": {"expansion_factor": 8}})
    [latents] = columns_of(["latents"])
    assert latents.cell(make_run(config=config)) == "8× width, k 16"
    run = make_run(config=config, chosen={"sae.d_sae": 1536})
    assert latents.cell(run) == "1,536 latents, k 16"
    assert list(grouped([run], "latents")) == ["1536 latents"]


def test_runs_without_k_are_a_group_of_their_own() -> None:
    runs = [make_run(id="a"), make_run(id="b", chosen={"sae.k": None})]
    found = {title: [run.id for run in members] for title, members in grouped(runs, "k").items()}
    assert found == {"k 16": ["a"], "k none": ["b"]}
