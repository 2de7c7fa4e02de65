"""The model card says what was trained, on what, and what was measured; nothing of the machine."""

from __future__ import annotations

import pytest
import yaml

from sae_engine.hub import HubName
from sae_engine.interop.model_card import model_card, public_config, public_name, public_title
from sae_engine.presets import resolve_config

DESCRIBED = {
    "architecture": "topk", "d_in": 64, "d_sae": 2048, "k": 32, "activation": "topk(...)",
    "model_name": "google/gemma-2-2b", "hook_name": "model.layers.3", "dataset": "some/text",
}  # fmt: skip


def card(changes: dict | None = None, metrics: dict | None = None, **described: object) -> str:
    config = resolve_config("tiny", changes or {})
    target = HubName.parse("hub:me/x")
    return model_card(target, "a\nrun", config, DESCRIBED | described, metrics or {}, 1_234_567)


def test_the_card_says_what_was_trained_and_what_was_measured():
    text = card(metrics={"eval_fvu": 0.12345, "ce_delta": 0.5, "lr": 1.0})
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "google/gemma-2-2b"
    assert "# a run\n" in text
    assert "A TopK (k = 32) sparse autoencoder with 2,048 latents" in text
    assert "trained it on 1,234,567 tokens of `some/text`" in text
    assert "| Held-out FVU | 0.1235 |" in text
    assert "Learning rate" not in text


@pytest.mark.parametrize(
    ("changes", "described", "words"),
    [
        ({"data": {"activations": "/srv/acts/a"}}, {}, "tokens of activations in `a`."),
        ({"sae": {"pretrained": "/srv/saes/b"}}, {}, "trained elsewhere (`b`)"),
        ({"sae": {"pretrained": "hub:you/y/c"}}, {}, "trained elsewhere (`hub:you/y/c`)"),
        ({}, {"hook_io": "input"}, "reads the input of `model.layers.3`"),
    ],
)
def test_the_card_says_where_the_activations_are_from(changes: dict, described: dict, words: str):
    text = card(changes, **described)
    assert words in text
    assert "/srv" not in text
    assert "## Figures" not in text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/srv/models/gemma", "gemma"),
        ("~/x.txt", "x.txt"),
        ("../a/b", "b"),
        ("me/model", "me/model"),
    ],
)
def test_of_a_local_path_only_the_last_part_is_published(text: str, public: str):
    assert public_name(text) == public
    config = resolve_config("tiny", {"data": {"dataset": text}})
    assert public_config(config)["data"]["dataset"] == public
    mixture = [{"dataset": "some/text", "weight": 1}, {"dataset": text, "weight": 2}]
    config = resolve_config("tiny", {"data": {"mixture": mixture}})
    assert [part["dataset"] for part in public_config(config)["data"]["mixture"]] == [
        "some/text",
        public,
    ]
    assert public_title(config.data) == f"some/text + {public}"
