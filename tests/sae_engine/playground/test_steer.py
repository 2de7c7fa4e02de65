"""Own text and steering against plain forward hooks on the whole model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_engine.errors import UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.playground.steer import ProbeModel, direction, generate, read_text, steer
from sae_engine.sae.autoencoders import SAE, JumpReLUSAE, TopKSAE
from sae_engine.schema.config import ModelConfig
from sae_engine.schema.playground import MAX_TEXT_TOKENS, TextReading
from tests.sae_engine.model.test_language_model import HOOKED, SITES, by_forward_hook, whole

TEXT = "import numpy as np\n\n\ndef main(args):\n    return 'é 日本'\n"
D_SAE, K, CTX, BOS = 96, 5, 16, 2


def topk_sae() -> TopKSAE:
    """Random, with unit rows and no zero that could hide a bug."""
    generator = torch.Generator().manual_seed(1)
    sae = TopKSAE(32, D_SAE, K)
    for parameter in sae.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return sae.folded(2.0)


def jumprelu_sae() -> JumpReLUSAE:
    generator = torch.Generator().manual_seed(2)
    sae = JumpReLUSAE(32, D_SAE)
    for parameter in sae.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    sae.threshold.copy_(10 * torch.rand(D_SAE, generator=generator))
    return sae.requires_grad_(False)


def probe_model(folder: Path, **config: object) -> ProbeModel:
    return ProbeModel.of(LanguageModel.load(ModelConfig(name=str(folder), layer=1, **config)))


def dense_code(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """[n, d_sae] from the published equations alone."""
    z = torch.relu((x - sae.b_dec) @ sae.encoder_rows.T + sae.b_enc)
    if isinstance(sae, JumpReLUSAE):
        return torch.where(z > sae.threshold, z, 0)
    kept = torch.zeros_like(z)
    return kept.scatter(1, z.topk(K).indices, z.topk(K).values)


def dense_reading(reading: TextReading) -> torch.Tensor:
    dense = torch.zeros(len(reading.tokens), D_SAE)
    for place, token in enumerate(reading.tokens):
        for feature in token.features:
            dense[place, feature.index] = feature.activation
    return dense


@pytest.mark.parametrize("make_sae", [topk_sae, jumprelu_sae])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", HOOKED)
def test_features_of_a_text_equal_the_published_equations_on_a_forward_hooks_activations(
    model_folders, architecture, site, make_sae
):
    model, sae = probe_model(model_folders[architecture], site=site), make_sae()
    ids = torch.tensor([[BOS, *model.encode(TEXT)]])
    path = HOOKED[architecture][site].format(1)
    x = by_forward_hook(whole(model_folders[architecture]), path, ids)[0]
    expected = dense_code(sae, x)
    expected[0] = 0  # BOS
    with torch.inference_mode():
        reading = read_text(model, sae, TEXT, ctx_len=60, top=D_SAE, features=[7, 3])
    assert [token.id for token in reading.tokens] == ids[0].tolist()
    torch.testing.assert_close(dense_reading(reading), expected)
    torch.testing.assert_close(torch.tensor(reading.activations), expected[:, [7, 3]].T)
    totals = [token.total for token in reading.tokens]
    torch.testing.assert_close(torch.tensor(totals), expected.sum(dim=1))
    counts = [token.num_active for token in reading.tokens]
    assert counts == (expected > 0).sum(dim=1).tolist()


def test_the_strongest_features_come_first_and_only_as_many_as_asked_for(model_folders):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    everything = read_text(model, sae, TEXT, ctx_len=60, top=D_SAE)
    reading = read_text(model, sae, TEXT, ctx_len=60, top=2)
    for short, long in zip(reading.tokens, everything.tokens, strict=True):
        values = [feature.activation for feature in long.features]
        assert values == sorted(values, reverse=True)
        assert short.features == long.features[:2]


def test_a_long_text_is_read_in_rows_as_in_training_each_after_its_own_bos(model_folders):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    text = TEXT * 3
    reading = read_text(model, sae, text, ctx_len=CTX, top=3)
    excluded = [token.excluded for token in reading.tokens]
    ids = model.encode(text)
    rows = [ids[i : i + CTX - 1] for i in range(0, len(ids), CTX - 1)]
    assert len(rows) > 3
    assert [t.id for t in reading.tokens] == [i for row in rows for i in (BOS, *row)]
    assert [at for at, reason in enumerate(excluded) if reason] == list(
        range(0, len(excluded), CTX)
    )
    assert set(excluded) == {"BOS", None}
    assert "".join(t.text for t in reading.tokens if t.excluded is None) == text
    for number, row in enumerate(rows):
        x = model.model.activations(torch.tensor([[BOS, *row]]))[0]
        alone = dense_code(sae, x)
        part = reading.tokens[number * CTX : number * CTX + len(row) + 1]
        for token, expected in list(zip(part, alone, strict=True))[1:]:
            top = expected.topk(3)
            assert [f.index for f in token.features] == top.indices.tolist()
            got = torch.tensor([f.activation for f in token.features])
            torch.testing.assert_close(got, top.values)


def test_a_literal_bos_in_the_text_is_text(model_folders):
    model = probe_model(model_folders["gemma2"])
    reading = read_text(model, topk_sae(), "a<bos>b", ctx_len=CTX)
    assert [t.excluded for t in reading.tokens].count("BOS") == 1
    assert "".join(t.text for t in reading.tokens[1:]) == "a<bos>b"


def test_a_text_of_too_many_tokens_is_refused_with_both_numbers(model_folders):
    model = probe_model(model_folders["gemma2"])
    with pytest.raises(UserError, match=f"9,000 tokens, and at most {MAX_TEXT_TOKENS:,}"):
        read_text(model, topk_sae(), "\n\t" * 4500, ctx_len=CTX)


def test_activations_that_are_not_finite_are_said_to_be_so(model_folders):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    sae.b_enc.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite on this text"):
        read_text(model, sae, TEXT, ctx_len=CTX)


# Steering


def continued(
    folder: Path,
    path: str,
    ids: Sequence[int],
    add: torch.Tensor | None,
    steps: int,
    *,
    as_input: bool = False,
    sample: torch.Generator | None = None,
) -> list[int]:
    """What follows `ids`, read anew for every token, by a plain hook and without a cache."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = list(ids)

    def changed(value: torch.Tensor) -> torch.Tensor:
        ordinary = torch.tensor([i not in (0, 1, 2) for i in ids])[None, :, None]
        return value + torch.where(ordinary, add, 0)

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
    ids = [BOS, *model.encode("def main"), 1, 77, 78]  # an eos inside keeps its own, too
    path = HOOKED[architecture][site].format(1)
    steered = continued(folder, path, ids, add, 10)
    got = list(generate(model.whole, ids, add=add, max_new_tokens=10, temperature=0.0, seed=0))
    assert got == steered
    plain = continued(folder, path, ids, None, 10)
    got = list(generate(model.whole, ids, max_new_tokens=10, temperature=0.0, seed=0))
    assert got == plain
    assert plain != steered


def test_steering_at_a_modules_input_equals_a_pre_hook(model_folders):
    folder, sae = model_folders["llama"], topk_sae()
    config = {"hook_point": "model.layers.2", "hook_io": "input"}
    model, add = probe_model(folder, **config), direction(sae, STRENGTHS)
    ids = [BOS, *model.encode("def main")]
    expected = continued(folder, "model.layers.2", ids, add, 8, as_input=True)
    got = list(generate(model.whole, ids, add=add, max_new_tokens=8, temperature=0.0, seed=0))
    assert got == expected


def test_sampling_draws_from_the_models_own_distribution_with_the_seeds_numbers(model_folders):
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


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(model_folders):
    model = probe_model(model_folders["gemma2"])
    first = texts(model, STRENGTHS, seed=5)
    assert first == texts(model, STRENGTHS, seed=5)
    other = texts(model, STRENGTHS, seed=6)
    assert first["plain"] != other["plain"]
    assert first["plain"] != first["steered"]


def test_a_tiny_temperature_is_greedy(model_folders):
    model = probe_model(model_folders["gemma2"])
    assert texts(model, STRENGTHS, temperature=1e-30) == texts(model, STRENGTHS, temperature=0.0)


def test_the_two_texts_come_in_turns_and_are_those_of_their_tokens(model_folders):
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


def test_a_prompt_that_leaves_no_room_is_refused_with_the_models_limit(model_folders):
    for architecture in HOOKED:
        model = probe_model(model_folders[architecture])
        with pytest.raises(UserError, match="60 more pass the 64 positions of this model"):
            next(steer(model, topk_sae(), "a b c d e f", STRENGTHS, max_new_tokens=60))


def test_logits_that_are_not_finite_are_said_to_be_so(model_folders):
    model = probe_model(model_folders["gemma2"])
    made = steer(model, topk_sae(), "def main", {4: float("inf")})
    with pytest.raises(UserError, match="not finite with these strengths; lower them"):
        list(made)
