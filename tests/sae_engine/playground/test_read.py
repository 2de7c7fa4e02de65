"""Features of a text, against plain forward hooks on the whole model of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_engine.errors import UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.playground.read import ProbeModel, read_text
from sae_engine.sae.autoencoders import SAE, JumpReLUSAE, TopKSAE
from sae_engine.schema.config import ModelConfig
from sae_engine.schema.playground import MAX_TEXT_TOKENS, TextReading
from tests.sae_engine.model.test_language_model import HOOKED, SITES, by_forward_hook, whole
from tests.sae_engine.sae.test_autoencoders import random_jumprelu, random_sae

TEXT = "import numpy as np\n\n\ndef main(args):\n    return 'é 日本'\n"
D_SAE, K, CTX, BOS = 96, 5, 16, 2


def topk_sae() -> TopKSAE:
    return random_sae(1, 32, D_SAE, K).folded(2.0)


def jumprelu_sae() -> JumpReLUSAE:
    return random_jumprelu(2, 32, D_SAE)


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
def test_features_of_a_text_follow_the_published_equations_on_a_hooks_activations(
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


def test_the_top_features_are_listed_strongest_first(model_folders):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    everything = read_text(model, sae, TEXT, ctx_len=60, top=D_SAE)
    reading = read_text(model, sae, TEXT, ctx_len=60, top=2)
    for short, long in zip(reading.tokens, everything.tokens, strict=True):
        values = [feature.activation for feature in long.features]
        assert values == sorted(values, reverse=True)
        assert short.features == long.features[:2]


def test_a_long_text_is_read_in_rows_that_each_start_with_bos(model_folders):
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


@pytest.mark.parametrize("number", [0, 1, 5])
def test_an_outlier_is_named_and_has_no_features(model_folders, number):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    plain = read_text(model, sae, TEXT, ctx_len=60, top=3)
    ids = torch.tensor([[token.id for token in plain.tokens]])
    norms = model.model.activations(ids)[0].norm(dim=1)
    limit = norms[1:].sort(descending=True).values[number].item()
    watched = [plain.tokens[3].features[0].index]
    read = read_text(model, sae, TEXT, ctx_len=60, top=3, features=watched, largest_norm=limit)
    large = [place for place, norm in enumerate(norms.tolist()) if place and norm > limit]
    assert len(large) == number
    assert [p for p, token in enumerate(read.tokens) if token.excluded == "outlier"] == large
    assert read.tokens[0].excluded == "BOS"
    for place, (token, before) in enumerate(zip(read.tokens, plain.tokens, strict=True)):
        if place in large:
            assert (token.features, token.num_active, token.total) == ([], 0, 0.0)
            assert read.activations[0][place] == 0
        else:
            assert token == before


def test_a_literal_bos_in_the_text_is_ordinary_text(model_folders):
    model = probe_model(model_folders["gemma2"])
    reading = read_text(model, topk_sae(), "a<bos>b", ctx_len=CTX)
    assert [t.excluded for t in reading.tokens].count("BOS") == 1
    assert "".join(t.text for t in reading.tokens[1:]) == "a<bos>b"


def test_the_error_for_a_long_text_gives_its_length_and_the_limit(model_folders):
    model = probe_model(model_folders["gemma2"])
    with pytest.raises(UserError, match=f"9,000 tokens, but at most {MAX_TEXT_TOKENS:,}"):
        read_text(model, topk_sae(), "\n\t" * 4500, ctx_len=CTX)


def test_activations_that_are_not_finite_are_reported(model_folders):
    model, sae = probe_model(model_folders["gemma2"]), topk_sae()
    sae.b_enc.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite on this text"):
        read_text(model, sae, TEXT, ctx_len=CTX)
