"""Fast encoding with a trained SAE, against the SAE's own equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_engine.sae import inference as module
from sae_engine.sae.autoencoders import Code, JumpReLUSAE, TopKSAE
from sae_engine.sae.inference import open_coder


def dense(code: Code, d_sae: int) -> Tensor:
    return torch.zeros(len(code.acts), d_sae).scatter_add_(1, code.indices.long(), code.acts)


@pytest.mark.parametrize("tied", [False, True])
def test_codes_and_reconstructions_of_a_topk_sae_equal_its_equations(
    tied: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 16)
    sae = TopKSAE(24, 80, 5, tied=tied)
    sae.initialize_(0, torch.randn(24))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1)
    x = 2 * torch.randn(50, 24)
    coder = open_coder(sae)
    code, x_hat = coder.reconstruct(x)
    expected = sae.encode(x)
    torch.testing.assert_close(dense(code, 80), dense(expected, 80), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense(coder.encode(x), 80), dense(code, 80), rtol=0, atol=0)
    torch.testing.assert_close(x_hat, sae(x), rtol=1e-4, atol=1e-4)
    assert not code.acts.requires_grad
    assert not x_hat.requires_grad


def test_codes_of_a_topk_that_ranks_by_pre_activation():
    """Row norms from 0 to 6, so that the other rule would choose other latents."""
    sae = TopKSAE(24, 80, 5, ranks_by_norm=False)
    sae.initialize_(0, torch.randn(24))
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0, 6, 80)[:, None])
    x = 2 * torch.randn(50, 24)
    values, indices = sae.pre_activations(x).topk(5)
    expected = torch.zeros(50, 80).scatter(1, indices, values.relu()).detach()
    coder = open_coder(sae)
    for code in (sae.encode(x), coder.encode(x)):
        torch.testing.assert_close(dense(code, 80).detach(), expected, rtol=1e-5, atol=1e-6)
    x_hat = expected @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(coder.reconstruct(x)[1], x_hat.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_numbers_that_are_not_finite_reach_the_reconstruction(bad: float):
    sae = TopKSAE(6, 20, 3)
    sae.initialize_(0, torch.zeros(6))
    x = torch.randn(4, 6)
    x[2] = bad
    x_hat = open_coder(sae).reconstruct(x)[1]
    torch.testing.assert_close(x_hat, sae(x).detach(), equal_nan=True)
    sae.W_enc.data[7] = float("nan")
    x_hat = open_coder(sae).reconstruct(torch.ones(4, 6))[1]
    torch.testing.assert_close(x_hat, sae(torch.ones(4, 6)).detach(), equal_nan=True)


def test_an_sae_of_another_kind_uses_its_own_encoder():
    sae = JumpReLUSAE(6, 9)
    for parameter in sae.parameters():
        parameter.data.normal_()
    x = torch.randn(4, 6)
    code, x_hat = open_coder(sae).reconstruct(x)
    assert torch.equal(code.acts, sae.encode(x).acts)
    assert torch.equal(x_hat, sae(x))
