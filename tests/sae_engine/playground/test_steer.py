"""Steered text, against plain forward hooks on the whole model of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_engine.errors import UserError
from sae_engine.playground.read import ProbeModel
from sae_engine.playground.steer import direction, generate, steer
from tests.sae_engine.model.test_language_model import HOOKED, SITES
from tests.sae_engine.playground.test_read import BOS, probe_model, topk_sae


def continued(
    folder: Path,
    path: str,
    ids: Sequence[int],
    add: torch.Tensor | None,
    steps: int,
    *,
    as_input: bool = False,
    largest_norm: float = math.inf,
    sample: torch.Generator | None = None,
) -> list[int]:
    """The continuation of `ids` by a plain hook, without a cache."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = list(ids)

    def changed(value: torch.Tensor) -> torch.Tensor:
        ordinary = torch.tensor([i not in (0, 1, 2) for i in ids])[None, :, None]
        small = torch.linalg.vector_norm(value, dim=-1, keepdim=True) <= largest_norm
        return value + torch.where(ordinary & small, add, 0)

    def after(_module, _inputs, output):
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        return changed(output)

    module = model.get_submodule(path)
    if add is not None and as_input:
        module.register_forward_pre_hook(lambda _m, inputs: (changed(inputs[0]), *inputs[1:]))
    elif add is not None:
        module.register_forward_hook(after)
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        if sample is None:
            ids.append(int(logits.argmax()))
        else:
            ids.append(int(torch.multinomial(logits.softmax(0), 1, generator=sample)))
        if ids[-1] == 1:
            return ids[start:-1]
    return ids[start:]


STRENGTHS = {4: 6.0, 9: -3.0}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", HOOKED)
def test_steering_equals_a_plain_hook_that_adds_the_decoder_rows_at_ordinary_positions(
    model_folders, architecture, site
):
    folder, sae = model_folders[architecture], topk_sae()
    model = probe_model(folder, site=site)
    add = 6.0 * sae.W_dec[4] - 3.0 * sae.W_dec[9]
    torch.testing.assert_close(direction(sae, STRENGTHS), add)
    ids = [BOS, *model.encode("def main"), 1, 77, 78]  # nothing is added at an eos inside
    path = HOOKED[architecture][site].format(1)
    steered = continued(folder, path, ids, add, 10)
    got = list(generate(model.whole, ids, add=add, max_new_tokens=10, temperature=0.0, seed=0))
    assert got == steered
    plain = continued(folder, path, ids, None, 10)
    got = list(generate(model.whole, ids, max_new_tokens=10, temperature=0.0, seed=0))
    assert got == plain
    assert plain != steered


def test_nothing_is_added_at_outliers(model_folders):
    folder, sae = model_folders["llama"], topk_sae()
    model, add = probe_model(folder), direction(sae, STRENGTHS)
    ids = [BOS, *model.encode("def main(args): return 1")]
    norms = model.model.activations(torch.tensor([ids]))[0].norm(dim=1)
    limit = norms.median().item()

    def continuation(largest_norm: float) -> list[int]:
        how = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0, "largest_norm": largest_norm}
        return list(generate(model.whole, ids, add=add, **how))

    path = HOOKED["llama"]["resid_post"].format(1)
    expected = continued(folder, path, ids, add, 8, largest_norm=limit)
    assert continuation(limit) == expected
    assert continuation(math.inf) == continued(folder, path, ids, add, 8) != expected
    assert continuation(0.0) == continued(folder, path, ids, None, 8)


def test_steering_at_a_modules_input_equals_a_pre_hook(model_folders):
    folder, sae = model_folders["llama"], topk_sae()
    config = {"hook_point": "model.layers.2", "hook_io": "input"}
    model, add = probe_model(folder, **config), direction(sae, STRENGTHS)
    ids = [BOS, *model.encode("def main")]
    expected = continued(folder, "model.layers.2", ids, add, 8, as_input=True)
    got = list(generate(model.whole, ids, add=add, max_new_tokens=8, temperature=0.0, seed=0))
    assert got == expected


def test_sampling_draws_from_the_models_distribution_with_the_seeds_random_numbers(model_folders):
    folder, model = model_folders["gemma2"], probe_model(model_folders["gemma2"])
    ids = [BOS, *model.encode("def main")]
    for seed in (0, 1):
        expected = continued(
            folder, "model.layers.1", ids, None, 8, sample=torch.Generator().manual_seed(seed)
        )
        got = generate(model.whole, ids, max_new_tokens=8, temperature=1.0, seed=seed)
        assert list(got) == expected


def texts(model: ProbeModel, strengths: dict[int, float], **how: object) -> dict[str, str]:
    found = {"plain": "", "steered": ""}
    for token in steer(model, topk_sae(), "def main", strengths, **how):
        found[token.side] += token.text
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("architecture", HOOKED)
def test_a_strength_of_zero_is_the_plain_text_exactly(model_folders, architecture, temperature):
    model = probe_model(model_folders[architecture])
    both = texts(model, {4: 0.0}, temperature=temperature, max_new_tokens=30)
    assert both["plain"] == both["steered"] != ""


def test_a_seed_determines_both_texts(model_folders):
    model = probe_model(model_folders["gemma2"])
    first = texts(model, STRENGTHS, seed=5)
    assert first == texts(model, STRENGTHS, seed=5)
    other = texts(model, STRENGTHS, seed=6)
    assert first["plain"] != other["plain"]
    assert first["plain"] != first["steered"]


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-30])
def test_a_tiny_temperature_is_greedy(model_folders, temperature):
    model = probe_model(model_folders["gemma2"])
    assert texts(model, STRENGTHS, temperature=temperature) == texts(
        model, STRENGTHS, temperature=0.0
    )


def test_the_two_texts_alternate_and_spell_their_tokens(model_folders):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    how = {"max_new_tokens": 25, "temperature": 1.0, "seed": 3}
    tokens = list(steer(model, sae, "é日", STRENGTHS, **how))
    assert [t.side for t in tokens[:50]] == ["plain", "steered"] * 25
    for side, add in {"plain": None, "steered": direction(sae, STRENGTHS)}.items():
        ids = list(generate(model.whole, [BOS, *model.encode("é日")], add=add, **how))
        shown = "".join(model.shown(ids))
        assert "".join(t.text for t in tokens if t.side == side) == shown


def test_a_text_ends_before_its_eos(model_folders):
    model = probe_model(model_folders["gemma2"])
    how = {"max_new_tokens": 9, "temperature": 1.0, "seed": 0}
    ids = list(generate(model.whole, [BOS, 50, 60], **how))
    model.whole.prefix.eos_id = ids[4]
    assert list(generate(model.whole, [BOS, 50, 60], **how)) == ids[: ids.index(ids[4])] != []


def test_the_error_for_a_long_prompt_gives_the_models_limit(model_folders):
    for architecture in HOOKED:
        model = probe_model(model_folders[architecture])
        with pytest.raises(UserError, match="60 more exceed the 64 positions of this model"):
            next(steer(model, topk_sae(), "a b c d e f", STRENGTHS, max_new_tokens=60))


def test_logits_that_are_not_finite_are_reported(model_folders):
    model = probe_model(model_folders["gemma2"])
    made = steer(model, topk_sae(), "def main", {4: float("inf")})
    with pytest.raises(UserError, match="not finite with these strengths; lower them"):
        list(made)
