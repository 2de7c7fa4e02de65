"""The linear part of what follows the last layer, against matrices written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sae_engine.model.unembedding import Unembedding

VOCAB = 50


def llama(width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        head_dim=4,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    nn.init.normal_(model.model.norm.weight)
    return model


def gpt2(width: int) -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=VOCAB, n_embd=width, n_layer=2, n_head=1, n_positions=8)
    model = GPT2LMHeadModel(config).eval()
    nn.init.normal_(model.transformer.ln_f.weight)
    nn.init.normal_(model.transformer.ln_f.bias)
    return model


@pytest.mark.parametrize("width", [6, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_norm_that_keeps_the_mean_multiplies_the_head_by_its_weight(width, dtype):
    model = llama(width).to(dtype)
    expected = model.lm_head.weight.float() * model.model.norm.weight.float()
    torch.testing.assert_close(Unembedding(model).matrix(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("width", [6, 7, 16])
@torch.no_grad()
def test_a_norm_that_subtracts_the_mean_is_centered(width):
    model = gpt2(width)
    centering = torch.eye(width) - 1 / width
    expected = model.lm_head.weight @ torch.diag(model.transformer.ln_f.weight) @ centering
    torch.testing.assert_close(Unembedding(model).matrix(), expected, rtol=1e-4, atol=1e-6)


class Squared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


@torch.no_grad()
def test_there_are_no_logits_of_features_where_nothing_is_linear():
    model = llama(16)
    model.model.norm = Squared()
    assert Unembedding(model).matrix() is None


@pytest.mark.parametrize("cut", [1, 5])
@torch.no_grad()
def test_logits_in_chunks_are_those_of_the_whole_forward_pass(cut):
    model = gpt2(16)
    ids = torch.randint(VOCAB, (1, 8))
    expected = model(ids).logits[0]
    output = model.transformer(ids)
    unembedding = Unembedding(model)
    hidden = output.last_hidden_state[0]
    logits = [unembedding.logits(part, output) for part in hidden.split(cut)]
    torch.testing.assert_close(torch.cat(logits), expected)
    assert torch.equal(model(ids).logits[0], expected)  # the model is as it was


@torch.no_grad()
def test_scales_and_caps_are_computed_in_float32():
    model = llama(16).to(torch.bfloat16)
    forward = type(model).forward
    dtypes: list[torch.dtype] = []

    def capped(*args: object, **options: object) -> object:
        answer = forward(model, *args, **options)
        dtypes.append(answer.logits.dtype)
        return answer

    model.forward = capped
    unembedding = Unembedding(model)
    output = model.model(torch.zeros(1, 3, dtype=torch.long))
    unembedding.logits(output.last_hidden_state[0], output)
    assert dtypes[-1] == torch.float32
