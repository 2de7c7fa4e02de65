"""What decides which latents are active is kept: TopK's ranking, signs, gates, removed means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_engine.interop.export import export_saelens
from sae_engine.interop.load import load_pretrained
from sae_engine.sae.autoencoders import SAE, JumpReLUSAE
from sae_engine.sae.inference import open_coder
from tests.sae_engine.interop.test_export import published
from tests.sae_engine.interop.test_load import (
    D_IN,
    D_SAE,
    K,
    Parts,
    assert_same,
    dictionary_learning,
    keep_largest,
    saelens,
    trainer,
    write,
)


@pytest.fixture
def parts() -> Parts:
    return Parts()


def sparsify(folder: Path, parts: Parts, **config: object) -> Path:
    tensors = parts.linear | {"W_dec": parts.W_dec}
    del tensors["decoder.weight"]
    return write(folder, tensors, "sae.safetensors", {"k": K, "num_latents": D_SAE, **config})


def dense(sae: SAE, x: Tensor) -> Tensor:
    code = sae.encode(x)
    return torch.zeros(len(x), sae.d_sae).scatter(1, code.indices, code.acts)


@pytest.mark.parametrize("zero_row", [False, True])
@pytest.mark.parametrize("library", ["saelens", "sparsify", "dictionary_learning"])
def test_topk_keeps_the_largest_pre_activations_whatever_the_norms(
    parts: Parts, tmp_path: Path, library: str, zero_row: bool
):
    if zero_row:
        parts.W_dec[3] = 0
    if library == "saelens":
        folder = saelens(tmp_path, parts, {}, architecture="topk", k=float(K))
    elif library == "sparsify":
        folder = sparsify(tmp_path, parts)
    else:
        folder = dictionary_learning(tmp_path, parts.linear, trainer("AutoEncoderTopK"))
    got = load_pretrained(folder)
    z = keep_largest(parts.pre)
    assert not torch.equal(z > 0, keep_largest(parts.pre * parts.norms) > 0)
    assert_same(got, parts.x, z, parts.decoded(z))
    assert torch.equal(got.sae.W_dec, parts.W_dec)
    assert got.notes == []


@pytest.mark.parametrize("library", ["sparsify", "saelens"])
def test_signed_topk_keeps_the_largest_absolute_values(parts: Parts, tmp_path: Path, library: str):
    if library == "sparsify":
        folder = sparsify(tmp_path, parts, signed=True)
    else:
        arguments = {"k": K, "signed": True}
        folder = saelens(
            tmp_path, parts, {}, activation_fn_str="topk", activation_fn_kwargs=arguments
        )
    got = load_pretrained(folder)
    indices = parts.pre.abs().topk(K).indices
    z = torch.zeros_like(parts.pre).scatter(1, indices, parts.pre.gather(1, indices))
    assert (z < 0).any()
    both = dense(got.sae, parts.x)
    torch.testing.assert_close(both[:, :D_SAE] - both[:, D_SAE:], z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.sae(parts.x), parts.decoded(z), rtol=1e-5, atol=1e-5)
    assert ["latent i + 20" in note for note in got.notes] == [True]


@pytest.mark.parametrize("centers", [True, False])
def test_gated_saes_are_gated_where_the_gate_is_positive(
    parts: Parts, tmp_path: Path, centers: bool
):
    generator = torch.Generator().manual_seed(7)
    b_gate, b_mag, r_mag = torch.randn(3, D_SAE, generator=generator)
    extra = {"b_gate": b_gate, "b_mag": b_mag, "r_mag": r_mag}
    folder = saelens(tmp_path, parts, extra, architecture="gated", apply_b_dec_to_input=centers)
    u = (parts.x - centers * parts.b_dec) @ parts.W_enc
    z = (r_mag.exp() * u + b_mag).relu() * (u + b_gate > 0)
    assert_same(load_pretrained(folder), parts.x, z * parts.norms, parts.decoded(z))
    if centers:
        tensors = {
            "encoder.weight": parts.linear["encoder.weight"],
            "decoder.weight": parts.linear["decoder.weight"],
            "decoder_bias": parts.b_dec,
            "gate_bias": b_gate,
            "mag_bias": b_mag,
            "r_mag": r_mag,
        }
        folder = dictionary_learning(tmp_path / "other", tensors, trainer("GatedAutoEncoder"))
        assert_same(load_pretrained(folder), parts.x, z * parts.norms, parts.decoded(z))


@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_a_mean_that_was_removed_in_training_is_removed_by_the_encoder(
    parts: Parts, tmp_path: Path, kind: str, centers: bool
):
    loading = {"center_writing_weights": True, "fold_ln": True}
    folder = saelens(
        tmp_path, parts, {"threshold": parts.threshold} if kind == "jumprelu" else {},
        architecture=kind, k=K, apply_b_dec_to_input=centers,
        metadata={"model_from_pretrained_kwargs": loading},
    )  # fmt: skip
    got = load_pretrained(folder)
    x = parts.x - parts.x.mean(dim=1, keepdim=True)
    pre = (x - centers * parts.b_dec) @ parts.W_enc + parts.b_enc
    z = keep_largest(pre) if kind == "topk" else torch.where(pre > parts.threshold, pre.relu(), 0)
    norms = parts.norms if isinstance(got.sae, JumpReLUSAE) else 1
    mean = parts.x.mean(dim=1, keepdim=True)
    assert_same(got, parts.x, z * norms, parts.decoded(z) + mean)
    assert ["mean over their coordinates" in note for note in got.notes] == [True]
    x_hat = open_coder(got.sae).reconstruct(parts.x)[1]
    torch.testing.assert_close(x_hat, got.sae(parts.x), rtol=1e-4, atol=1e-4)

    run = published(tmp_path / "run", got.sae)
    export_saelens(run, tmp_path / "export")
    for copy in (run.path, tmp_path / "export"):
        again = load_pretrained(copy).sae
        torch.testing.assert_close(again(parts.x), got.sae(parts.x), rtol=1e-4, atol=1e-4)


def test_a_mean_is_kept_for_models_without_layer_norm(parts: Parts, tmp_path: Path):
    folder = saelens(
        tmp_path, parts, {}, architecture="topk", k=K,
        metadata={
            "model_name": "gemma-2-2b",
            "model_from_pretrained_kwargs": {"center_writing_weights": True},
        },
    )  # fmt: skip
    z = keep_largest(parts.pre)
    assert_same(load_pretrained(folder), parts.x, z, parts.decoded(z))


def test_qwen_scope_is_uncentered_topk_with_both_matrices_transposed(parts: Parts, tmp_path: Path):
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4"
    folder.mkdir()
    tensors = parts.tensors
    tensors |= {name: tensors[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save({name: t.bfloat16() for name, t in tensors.items()}, folder / "layer7.sae.pt")
    got = load_pretrained(folder)
    half = Parts()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        setattr(half, name, getattr(parts, name).bfloat16().float())
    pre = parts.x @ half.W_enc + half.b_enc
    z = keep_largest(pre)
    assert_same(got, parts.x, z, half.decoded(z))
    assert got.described.model_name == "Qwen/Qwen3-1.7B-Base"
    assert got.described.place.settings == {"layer": 7, "site": "resid_post"}
    assert got.sae.d_in == D_IN
