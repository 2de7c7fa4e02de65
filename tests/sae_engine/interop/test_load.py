"""SAEs of other libraries compute the same here, by the formulas of each library."""

from __future__ import annotations

import json
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.interop.load import PretrainedSAE, load_pretrained
from sae_engine.sae.autoencoders import JumpReLUSAE, TopKSAE

D_IN, D_SAE, K = 6, 20, 4


class Parts:
    """Random tensors of an SAE, in SAELens's orientation: W_enc [d_in, d_sae]."""

    def __init__(self, seed: int = 0, *, unit_rows: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.W_enc, self.W_dec = normal(D_IN, D_SAE), normal(D_SAE, D_IN)
        if unit_rows:
            self.W_dec = self.W_dec / self.W_dec.norm(dim=1, keepdim=True)
        self.b_enc, self.b_dec = normal(D_SAE), 3 * normal(D_IN)
        self.threshold = normal(D_SAE).abs()
        self.x = normal(50, D_IN) + self.b_dec
        self.norms = self.W_dec.norm(dim=1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = ("W_enc", "W_dec", "b_enc", "b_dec")
        return {name: getattr(self, name).contiguous() for name in names}

    @property
    def linear(self) -> dict[str, Tensor]:
        """Names and orientation of `torch.nn.Linear`."""
        return {
            "encoder.weight": self.W_enc.T.contiguous(),
            "encoder.bias": self.b_enc,
            "decoder.weight": self.W_dec.T.contiguous(),
            "b_dec": self.b_dec,
        }

    @property
    def pre(self) -> Tensor:
        return (self.x - self.b_dec) @ self.W_enc + self.b_enc

    @property
    def uncentered(self) -> Tensor:
        return self.x @ self.W_enc + self.b_enc

    def decoded(self, z: Tensor) -> Tensor:
        return z @ self.W_dec + self.b_dec


def keep_largest(scores: Tensor) -> Tensor:
    values, indices = scores.topk(K, dim=-1)
    return torch.zeros_like(scores).scatter(-1, indices, values.relu())


def write(
    folder: Path, tensors: dict[str, Tensor], weights: str, config: dict, name: str = "cfg.json"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / weights)
    (folder / name).write_text(json.dumps(config), "utf-8")
    return folder


def saelens(folder: Path, parts: Parts, extra: dict[str, Tensor], **config: object) -> Path:
    return write(folder, parts.tensors | extra, "sae_weights.safetensors", config)


def facts(got: PretrainedSAE) -> tuple:
    """What the files say: format, notes, model, layer, site."""
    described = got.described
    return (described.title, got.notes, described.model_name, *described.place[:2])


def assert_same(got: PretrainedSAE, x: Tensor, z: Tensor, x_hat: Tensor) -> None:
    """Check codes and reconstructions; `z` is in the convention of unit-norm decoder rows, unless
    TopK ranks by pre-activation.
    """
    sae = got.sae
    if sae.ranks_by_norm:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    code = sae.encode(x)
    dense = torch.zeros_like(z).scatter(1, code.indices, code.acts)
    torch.testing.assert_close(dense, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    assert (z > 0).any()


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def unit() -> Parts:
    return Parts(unit_rows=True)


def test_saelens_topk_that_ranks_by_norm(parts: Parts, tmp_path: Path):
    folder = saelens(
        tmp_path, parts, {}, architecture="topk", k=K, rescale_acts_by_decoder_norm=True,
        metadata={"model_name": "gemma-2-2b", "hook_name": "blocks.12.hook_resid_post"},
    )  # fmt: skip
    got = load_pretrained(folder)
    z = keep_largest(parts.pre * parts.norms)
    assert_same(got, parts.x, z, parts.decoded(z / parts.norms))
    assert isinstance(got.sae, TopKSAE)
    assert facts(got) == ("SAELens", [], "google/gemma-2-2b", 12, "resid_post")


def test_saelens_topk_of_version_3_with_unit_rows(unit: Parts, tmp_path: Path):
    folder = saelens(
        tmp_path, unit, {}, activation_fn_str="topk", activation_fn_kwargs={"k": K},
        hook_name="blocks.3.hook_mlp_out", model_name="gpt2", normalize_activations="none",
    )  # fmt: skip
    got = load_pretrained(folder)
    z = keep_largest(unit.pre)
    assert_same(got, unit.x, z, unit.decoded(z))
    assert facts(got) == ("SAELens", [], "gpt2", 3, "mlp_out")


def test_a_requested_format_overrides_detection(unit: Parts, tmp_path: Path):
    folder = saelens(tmp_path, unit, {}, architecture="topk", k=K)
    assert load_pretrained(folder, "saelens").described.title == "SAELens"
    with pytest.raises(UserError, match=r"config\.json' cannot be read"):
        load_pretrained(folder, "dictionary_learning")


@pytest.mark.parametrize("centers", [True, False])
def test_saelens_jumprelu(parts: Parts, tmp_path: Path, centers: bool):
    folder = saelens(
        tmp_path, parts, {"threshold": parts.threshold}, architecture="jumprelu",
        apply_b_dec_to_input=centers,
    )  # fmt: skip
    got = load_pretrained(folder / "sae_weights.safetensors")
    pre = parts.pre if centers else parts.uncentered
    z = torch.where(pre > parts.threshold, pre.relu(), 0)
    assert_same(got, parts.x, z * parts.norms, parts.decoded(z))
    assert isinstance(got.sae, JumpReLUSAE)


def test_saelens_batchtopk_checkpoint_becomes_jumprelu(parts: Parts, tmp_path: Path):
    folder = saelens(
        tmp_path, parts, {"topk_threshold": torch.tensor(0.7, dtype=torch.double)},
        architecture="batchtopk", k=K, rescale_acts_by_decoder_norm=True,
    )  # fmt: skip
    got = load_pretrained(folder)
    scaled = parts.pre * parts.norms
    z = torch.where(scaled > 0.7, scaled, 0)
    assert_same(got, parts.x, z, parts.decoded(z / parts.norms))


def test_saelens_standard_with_a_finetuned_scale(parts: Parts, tmp_path: Path):
    scale = torch.linspace(0.5, 2, D_SAE)
    folder = saelens(tmp_path, parts, {"scaling_factor": scale}, architecture="standard")
    got = load_pretrained(folder)
    z = parts.pre.relu()
    assert_same(got, parts.x, z * scale * parts.norms, parts.decoded(z * scale))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architecture": "temporal"}, "SAELens's 'temporal'"),
        ({"architecture": "gated"}, "no tensor 'b_gate'"),
        ({"architecture": "topk", "k": 4, "hook_name_out": "blocks.1.hook_mlp_out"}, "transcoder"),
        ({"architecture": "topk", "k": 4, "metadata": {"hook_head_index": 3}}, "head 3 alone"),
        ({"architecture": "topk", "k": 4.5}, "does not say its k"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, "'tanh-relu'"),
        ({"architecture": "topk"}, "does not say its k"),
        ({"architecture": "jumprelu"}, "no tensor 'threshold'"),
        ({"architecture": "topk", "k": 4, "normalize_activations": "layer_norm"}, "'layer_norm'"),
    ],
)
def test_saelens_files_that_cannot_be_converted_exactly_are_refused(
    parts: Parts, tmp_path: Path, config: dict, sentence: str
):
    with pytest.raises(UserError, match=sentence):
        load_pretrained(saelens(tmp_path, parts, {}, **config))


@pytest.mark.parametrize("release", [1, 2])
def test_gemma_scope_does_not_center_its_inputs(parts: Parts, tmp_path: Path, release: int):
    release_folder = tmp_path / "my-transcoders" / "gemma-scope-9b-it-res"
    folder = release_folder / "layer_20" / "width_16k" / "average_l0_91"
    folder.mkdir(parents=True)
    tensors = parts.tensors | {"threshold": parts.threshold}
    if release == 1:
        np.savez(folder / "params.npz", **{n: t.numpy() for n, t in tensors.items()})
    else:
        small = {name.replace("W_", "w_"): t for name, t in tensors.items()}
        save_file(small, folder / "params.safetensors")
        (folder / "config.json").write_text('{"architecture": "jump_relu"}')
    got = load_pretrained(folder)
    pre = parts.uncentered
    z = torch.where(pre > parts.threshold, pre, 0)
    assert_same(got, parts.x, z * parts.norms, parts.decoded(z))
    assert facts(got) == ("Gemma Scope", [], "google/gemma-2-9b-it", 20, "resid_post")


def test_gemma_scope_with_a_finetuned_scale(parts: Parts, tmp_path: Path):
    scale = torch.linspace(0.5, 2, D_SAE)
    tensors = parts.tensors | {"threshold": parts.threshold, "scaling_factor": scale}
    np.savez(tmp_path / "params.npz", **{n: t.numpy() for n, t in tensors.items()})
    got = load_pretrained(tmp_path)
    z = torch.where(parts.uncentered > parts.threshold, parts.uncentered, 0)
    assert_same(got, parts.x, z * scale * parts.norms, parts.decoded(z * scale))


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("gemma-scope-2b-pt-transcoders/layer_3", "is a transcoder"),
        ("gemma-scope-2b-pt-res/embedding", "is an SAE of the token embeddings"),
    ],
)
def test_gemma_scope_transcoders_and_embedding_saes_are_refused(
    parts: Parts, tmp_path: Path, folder: str, sentence: str
):
    path = tmp_path / folder / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **{n: t.numpy() for n, t in parts.tensors.items()})
    with pytest.raises(UserError, match=sentence):
        load_pretrained(path)


def test_gemma_scope_attention_saes_say_their_hook_point(parts: Parts, tmp_path: Path):
    path = tmp_path / "gemma-scope-2b-pt-att" / "layer_3" / "params.npz"
    path.parent.mkdir(parents=True)
    tensors = parts.tensors | {"threshold": parts.threshold}
    np.savez(path, **{n: t.numpy() for n, t in tensors.items()})
    got = load_pretrained(path)
    assert facts(got) == ("Gemma Scope", [], "google/gemma-2-2b", 3, None)
    hook_point = "model.layers.3.self_attn.o_proj"
    assert got.described.place.settings == {"hook_point": hook_point, "hook_io": "input"}


def test_an_npz_with_pickled_objects_is_not_opened(tmp_path: Path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_pretrained(tmp_path)


def test_sparsify(unit: Parts, tmp_path: Path):
    tensors = unit.linear | {"W_dec": unit.W_dec}
    del tensors["decoder.weight"]
    config = {"k": K, "num_latents": D_SAE, "d_in": D_IN, "activation": "topk"}
    got = load_pretrained(write(tmp_path / "layers.10.mlp", tensors, "sae.safetensors", config))
    z = keep_largest(unit.pre)
    assert_same(got, unit.x, z, unit.decoded(z))
    assert facts(got) == ("sparsify", [], None, 10, "mlp_out")
    with pytest.raises(UserError, match="transcoder"):
        load_pretrained(write(tmp_path, tensors, "sae.safetensors", config | {"transcode": True}))
    write(tmp_path, tensors, "sae.safetensors", config | {"activation": "groupmax"})
    with pytest.raises(UserError, match="'groupmax' activation"):
        load_pretrained(tmp_path)


def trainer(kind: str, **more: object) -> dict:
    return {
        "trainer": {
            "dict_class": kind, "lm_name": "EleutherAI/pythia-70m", "layer": 3, "k": K,
            "submodule_name": "resid_post_layer_3", **more,
        }
    }  # fmt: skip


def dictionary_learning(folder: Path, tensors: dict[str, Tensor], config: dict) -> Path:
    return write(folder, tensors, "ae.safetensors", config, "config.json")


def test_dictionary_learning_topk_ignores_its_threshold(unit: Parts, tmp_path: Path):
    tensors = unit.linear | {"k": torch.tensor(K), "threshold": torch.tensor(0.9)}
    got = load_pretrained(dictionary_learning(tmp_path, tensors, trainer("AutoEncoderTopK")))
    z = keep_largest(unit.pre)
    assert_same(got, unit.x, z, unit.decoded(z))
    assert facts(got) == ("dictionary_learning", [], "EleutherAI/pythia-70m", 3, "resid_post")


@pytest.mark.parametrize("threshold", [0.9, -1.0])
def test_dictionary_learning_batchtopk_uses_one_threshold(
    parts: Parts, tmp_path: Path, threshold: float
):
    tensors = parts.linear | {"k": torch.tensor(K), "threshold": torch.tensor(threshold)}
    got = load_pretrained(dictionary_learning(tmp_path, tensors, trainer("BatchTopKSAE")))
    z = parts.pre.relu() * (parts.pre.relu() > threshold)
    assert_same(got, parts.x, z * parts.norms, parts.decoded(z))
    assert ["never set" in note for note in got.notes] == [True] * (threshold < 0)


def test_dictionary_learning_matryoshka_and_jumprelu(parts: Parts, tmp_path: Path):
    tensors = parts.tensors | {"threshold": torch.tensor(0.5)}
    config = trainer("MatryoshkaBatchTopKSAE")
    got = load_pretrained(dictionary_learning(tmp_path / "a", tensors, config))
    z = torch.where(parts.pre > 0.5, parts.pre, 0)
    assert_same(got, parts.x, z * parts.norms, parts.decoded(z))
    tensors["threshold"] = parts.threshold
    config = trainer("JumpReluAutoEncoder")
    got = load_pretrained(dictionary_learning(tmp_path / "b", tensors, config))
    z = torch.where(parts.uncentered > parts.threshold, parts.uncentered, 0)
    assert_same(got, parts.x, z * parts.norms, parts.decoded(z))


def test_dictionary_learning_relu(parts: Parts, tmp_path: Path):
    tensors = parts.linear
    tensors["bias"] = tensors.pop("b_dec")
    got = load_pretrained(dictionary_learning(tmp_path, tensors, trainer("AutoEncoder")))
    z = parts.pre.relu()
    assert_same(got, parts.x, z * parts.norms, parts.decoded(z))


def test_paths_without_an_sae_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"There is no SAE at .*nowhere"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has none of sae\.safetensors"):
        load_pretrained(tmp_path)
    save_file({"lm_head": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has the tensors lm_head\. That is not a supported SAE"):
        load_pretrained(tmp_path / "model.safetensors")


NO_FIT = (
    r"do not fit together: .*W_dec \[.*; get its files again"
    r"|has shape \[.*(but W_dec needs|instead of)|bias that is not a vector"
)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("W_enc", [D_IN, D_SAE - 1]),
        ("W_enc", [D_IN + 1, D_SAE]),
        ("W_dec", [D_SAE - 1, D_IN]),
        ("b_enc", [D_SAE + 1]),
        ("b_dec", [D_IN - 1]),
        ("threshold", [D_SAE, 2]),
        *((name, []) for name in ("W_enc", "b_enc", "W_dec", "b_dec")),
        ("scaling_factor", [D_SAE - 1]),
        ("scaling_factor", []),
    ],
)
@pytest.mark.parametrize("library", ["saelens", "Gemma Scope"])
def test_tensors_that_do_not_fit_together_are_refused_in_one_sentence(
    parts: Parts, tmp_path: Path, monkeypatch, library: str, name: str, shape: list[int]
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    tensors = parts.tensors | {"threshold": parts.threshold, name: torch.ones(shape)}
    if library == "saelens":
        config = {"architecture": "jumprelu", "rescale_acts_by_decoder_norm": True}
        write(tmp_path, tensors, "sae_weights.safetensors", config)
    else:
        np.savez(tmp_path / "params.npz", **{n: t.numpy() for n, t in tensors.items()})
    with pytest.raises(UserError, match=NO_FIT):
        load_pretrained(tmp_path)
