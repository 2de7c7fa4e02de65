import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from sae_engine.errors import UserError
from sae_engine.sae.autoencoders import SAE, JumpReLUSAE, TopKSAE, sae_of


def random_sae(
    seed: int,
    d_in: int = 6,
    d_sae: int = 20,
    k: int = 4,
    *,
    tied: bool = False,
    ranks_by_norm: bool = True,
) -> TopKSAE:
    """Random weights, biases and row norms, so that no zero hides a bug."""
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(d_in, d_sae, k, tied=tied, ranks_by_norm=ranks_by_norm)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.W_dec.mul_(torch.rand(d_sae, 1, generator=generator) * 3 + 0.1)
    return sae


def random_jumprelu(seed: int, d_in: int = 6, d_sae: int = 20) -> JumpReLUSAE:
    """With random thresholds; negative ones must not let negative values pass."""
    topk = random_sae(seed, d_in, d_sae)
    sae = JumpReLUSAE(d_in, d_sae)
    with torch.no_grad():
        for name, parameter in topk.named_parameters():
            sae.get_parameter(name).copy_(parameter)
        sae.threshold.copy_(torch.randn(d_sae, generator=torch.Generator().manual_seed(seed)))
    return sae.requires_grad_(False)


def by_the_equations(sae: TopKSAE, x: torch.Tensor) -> tuple[list[set[int]], torch.Tensor]:
    """Computed row by row in float64, as the class's docstring defines it."""
    W_enc, W_dec = sae.encoder_rows.detach().double(), sae.W_dec.detach().double()
    b_enc, b_dec = sae.b_enc.detach().double(), sae.b_dec.detach().double()
    kept, outputs = [], []
    for row in x.double():
        pre = torch.relu((row - b_dec) @ W_enc.T + b_enc)
        order = torch.argsort(pre * W_dec.norm(dim=1), descending=True)[: sae.k]
        order = [int(i) for i in order if pre[i] > 0]
        kept.append(set(order))
        outputs.append(sum((pre[i] * W_dec[i] for i in order), torch.zeros_like(row)) + b_dec)
    return kept, torch.stack(outputs)


def active_sets(sae: SAE, x: torch.Tensor) -> list[set[int]]:
    code = sae.encode(x)
    return [set(i[a > 0].tolist()) for a, i in zip(code.acts.detach(), code.indices, strict=True)]


def test_a_code_computed_by_hand():
    sae = TopKSAE(2, 3, 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.6, 0.8]]))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0]))
    # pre = (2, 1, 3); weighted by row norms (1, 5, 1) the second latent wins.
    x = torch.tensor([[3.0, 1.0]])
    code = sae.encode(x)
    assert code.indices.tolist() == [[1]]
    assert code.acts.tolist() == [[1.0]]
    assert sae(x).tolist() == [[1.0, 5.0]]


@given(st.integers(0, 10_000), st.booleans())
def test_encode_and_decode_follow_the_equations(seed: int, tied: bool):
    sae = random_sae(seed, tied=tied)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed + 1))
    kept, x_hat = by_the_equations(sae, x)
    assert active_sets(sae, x) == kept
    torch.testing.assert_close(sae(x).detach().double(), x_hat, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.booleans())
def test_folding_norms_and_scale_changes_no_code(seed: int, scale: float, tied: bool):
    sae = random_sae(seed, tied=tied)
    raw = torch.randn(32, 6, generator=torch.Generator().manual_seed(seed + 1)) / scale
    folded = sae.folded(scale)
    assert active_sets(folded, raw) == active_sets(sae, raw * scale)
    torch.testing.assert_close(folded(raw) * scale, sae(raw * scale).detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(20))


def test_a_row_without_positive_pre_activations_decodes_to_the_bias():
    sae = random_sae(0)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    x = torch.randn(3, 6)
    assert active_sets(sae, x) == [set(), set(), set()]
    torch.testing.assert_close(sae(x), sae.b_dec.expand(3, -1))


def test_the_published_file_has_gemma_scopes_orientation_and_unit_norm_rows(tmp_path: Path):
    sae = random_sae(1).folded(0.5)
    sae.save(tmp_path / "sae.safetensors")
    tensors = load_file(tmp_path / "sae.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,),
    }  # fmt: skip
    torch.testing.assert_close(tensors["W_dec"].norm(dim=1), torch.ones(20))
    x = torch.randn(5, 6)
    pre = torch.relu((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    acts, indices = pre.topk(sae.k)
    x_hat = torch.zeros(5, 20).scatter(1, indices, acts) @ tensors["W_dec"] + tensors["b_dec"]
    torch.testing.assert_close(x_hat, sae(x), rtol=1e-4, atol=1e-5)


def test_a_saved_sae_is_loaded_unchanged(tmp_path: Path):
    sae = random_sae(2).folded(3.0)
    sae.save(tmp_path / "sae.safetensors")
    loaded = TopKSAE.load(tmp_path / "sae.safetensors")
    assert loaded.k == sae.k
    for name, parameter in sae.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter)


def jumprelu_by_the_equations(sae: JumpReLUSAE, x: torch.Tensor) -> torch.Tensor:
    """Dense codes, entry by entry."""
    z = torch.zeros(len(x), sae.d_sae)
    for n, row in enumerate(x):
        for i in range(sae.d_sae):
            pre = float((row - sae.b_dec) @ sae.W_enc[i] + sae.b_enc[i])
            if pre > max(0.0, float(sae.threshold[i])):
                z[n, i] = pre
    return z


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_jumprelu_keeps_what_exceeds_its_threshold_before_and_after_folding(
    seed: int, scale: float
):
    sae = random_jumprelu(seed)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed + 1))
    z = jumprelu_by_the_equations(sae, x)
    margins = sae.pre_activations(x) - sae.threshold.clamp_min(0)
    assume(margins.abs().min() > 1e-4)  # else rounding decides
    code = sae.encode(x)
    assert code.acts.shape[1] == max(1, int((z > 0).sum(1).max()))
    dense = torch.zeros_like(z).scatter(1, code.indices, code.acts)
    torch.testing.assert_close(dense, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), z @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-3)
    folded = sae.folded(scale)
    assert active_sets(folded, x / scale) == [set(row.nonzero().flatten().tolist()) for row in z]
    torch.testing.assert_close(folded(x / scale) * scale, sae(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(20))


def test_jumprelu_codes_have_width_one_if_nothing_is_active():
    sae = random_jumprelu(0)
    sae.threshold.fill_(1e6)
    code = sae.encode(torch.randn(3, 6))
    assert code.acts.tolist() == [[0.0]] * 3


def test_equal_saes_are_equal_files(tmp_path: Path):
    sae = TopKSAE(4, 8, 2)
    sae.ranks_by_norm, sae.passes_mean = False, True
    contents = set[bytes]()
    for _ in range(8):  # safetensors writes the four settings in another order each time
        sae.save(tmp_path / "sae.safetensors")
        contents.add((tmp_path / "sae.safetensors").read_bytes())
    assert len(contents) == 1
    loaded = TopKSAE.load(tmp_path / "sae.safetensors")
    assert (loaded.k, loaded.ranks_by_norm, loaded.passes_mean) == (2, False, True)


def test_a_saved_jumprelu_sae_is_loaded_unchanged_and_not_as_topk(tmp_path: Path):
    sae = random_jumprelu(2).folded(3.0)
    sae.save(tmp_path / "sae.safetensors")
    tensors = load_file(tmp_path / "sae.safetensors")
    assert sorted(tensors) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]
    loaded = SAE.load(tmp_path / "sae.safetensors")
    assert isinstance(loaded, JumpReLUSAE)
    for name, tensor in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(UserError, match="holds a jumprelu SAE, not a topk"):
        TopKSAE.load(tmp_path / "sae.safetensors")


def test_the_error_for_a_tensor_of_the_wrong_shape_names_it():
    tensors = {"W_enc": torch.zeros(4, 3), "W_dec": torch.zeros(4, 3), "b_dec": torch.zeros(3)}
    with pytest.raises(UserError, match=r"b_enc has shape \[1\]"):
        sae_of(**tensors, b_enc=torch.zeros(1), k=2)
    with pytest.raises(UserError, match="k = 5 is not between 1 and the number of latents, 4"):
        sae_of(**tensors, b_enc=torch.zeros(4), k=5)


def test_the_error_for_a_file_without_an_sae_names_it(tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match=r"broken\.safetensors"):
        TopKSAE.load(tmp_path / "broken.safetensors")


def test_initial_rows_are_unit_norm_and_the_encoder_is_their_transpose():
    sae = TopKSAE(5, 11, 2)
    sae.initialize_(3, torch.arange(5.0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(11))
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert torch.equal(sae.b_dec, torch.arange(5.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [random_sae, random_jumprelu])
def test_one_weight_that_is_not_finite_is_found_in_any_tensor_and_after_folding(make, bad: float):
    assert make(5).is_finite()
    for name in make(5).state_dict():
        sae = make(5)
        sae.state_dict()[name].view(-1)[3] = bad
        assert not sae.is_finite(), name
        assert not sae.folded(2.0).is_finite(), name


def test_the_parallel_gradient_is_removed():
    sae = random_sae(4)
    sae(torch.randn(8, 6)).pow(2).sum().backward()
    sae.remove_parallel_gradient_()
    torch.testing.assert_close(
        (sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(20), atol=1e-3, rtol=0
    )
