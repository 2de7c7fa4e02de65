"""Reads SAEs of other libraries. Used by `training.pretrained`.

Every reader returns an SAE in this project's convention (`sae.SAE`): inputs centered by `b_dec`,
decoder rows of unit norm. The same latents are active; activations are multiplied by the original
row norms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.interop.export import SAELENS_SITES
from sae_engine.interop.weights import Weights
from sae_engine.sae.autoencoders import SAE
from sae_engine.schema.config import PretrainedFormat


class PretrainedSAE(NamedTuple):
    """A loaded SAE, and what its files say about it; None if they do not say."""

    sae: SAE
    format: str
    notes: list[str]
    """Notes for users of the SAE."""
    model_name: str | None = None
    layer: int | None = None
    site: str | None = None
    """As in `ModelConfig.site`."""


SITES = {
    "": "resid_post",
    "mlp": "mlp_out",
    "post_feedforward_layernorm": "mlp_out",
    "self_attn": "attn_out",
    "attn": "attn_out",
    "post_attention_layernorm": "attn_out",
} | {theirs: ours for ours, theirs in SAELENS_SITES.items()}
"""Our sites, by the part of a module or hook name after the layer number."""
ATTENTION_HEADS = (
    "This SAE reads the concatenated outputs of the attention heads: set model.hook_point = "
    "'model.layers.<layer>.self_attn.o_proj' and model.hook_io = 'input'."
)


def load_pretrained(path: Path | str, wanted: PretrainedFormat | None = None) -> PretrainedSAE:
    """Read a trained SAE: a run's folder or its `sae.safetensors`; a folder of SAELens, sparsify or
    dictionary_learning; Gemma Scope's `params.npz`, or `params.safetensors` of its second release.

    The format is `wanted`, or detected. Raises `UserError` for an SAE that cannot be read, or not
    exactly.
    """
    weights = Weights.at(Path(path).expanduser())
    for name, is_of, read in READERS:
        if name == wanted or (wanted is None and is_of(weights)):
            return read(weights)
    raise UserError(
        f"'{weights.path}' has the tensors {', '.join(sorted(weights.tensors)[:8])}. That is not "
        "an SAE of SAE Workbench, SAELens, sparsify, Gemma Scope or dictionary_learning, or its "
        "settings file (cfg.json, config.json) is missing."
    )


def place_of(hook_name: object) -> tuple[int | None, str | None]:
    """Layer and site of `blocks.12.hook_resid_post`, `model.layers.12` or `layers.12.mlp`."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.(.*))?$", str(hook_name or ""))
    if found is None:
        return None, None
    layer, inside = int(found[1]), found[2] or ""
    if inside == "hook_resid_pre":
        return layer - 1, "resid_post"
    return layer, SITES.get(inside)


def _read_ours(weights: Weights) -> PretrainedSAE:
    described = weights.settings("cfg.json") if weights.has_beside("cfg.json") else {}
    place = place_of(described.get("hook_name"))
    sae = SAE.load(weights.path)
    return PretrainedSAE(sae, "SAE Workbench", [], described.get("model_name"), *place)


def _read_saelens(weights: Weights) -> PretrainedSAE:
    """SAELens 3 to 6. Before 6, `cfg.json` was flat and TopK was an activation function."""
    config = weights.settings("cfg.json")
    described = config | config.get("metadata", {})
    notes: list[str] = []
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    kind = "topk" if function == "topk" else config.get("architecture", "standard")
    if kind not in ("topk", "jumprelu", "batchtopk", "matryoshka_batchtopk", "standard"):
        weights.refuse(f"SAELens's '{kind}'", "topk, jumprelu, batchtopk and standard")
    if function not in ("relu", "topk"):
        weights.refuse(f"an SAE with the activation function '{function}'", "relu and topk")
    if config.get("normalize_activations") not in (None, False, "none"):
        raise UserError(
            f"'{weights.path}' expects inputs normalized by "
            f"'{config['normalize_activations']}'; fold the normalization into its weights with "
            "SAELens, and save it with normalize_activations = 'none'."
        )
    if config.get("reshape_activations", "none") != "none" or str(
        described.get("hook_name") or described.get("hook_point")
    ).endswith("hook_z"):
        notes.append(ATTENTION_HEADS)
    W_dec, k, threshold = _finetuned_decoder(weights), None, None
    if kind == "topk":
        k = weights.k(config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k"))
    elif kind == "standard":
        threshold = torch.zeros(())
    elif kind == "jumprelu":
        is_log = "log_threshold" in weights
        threshold = weights["log_threshold"].exp() if is_log else weights["threshold"]
    else:
        threshold = weights["topk_threshold"]
    ranks_by_norm = bool(config.get("rescale_acts_by_decoder_norm"))
    if k is None and ranks_by_norm:  # SAELens compares after rescaling, we before
        assert threshold is not None
        threshold = threshold / W_dec.norm(dim=1)
    sae = weights.converted(
        weights["W_enc"].T,
        weights["b_enc"],
        W_dec,
        weights["b_dec"],
        notes,
        k=k,
        threshold=threshold,
        centers=bool(config.get("apply_b_dec_to_input", True)),
        ranks_by_norm=ranks_by_norm,
    )
    place = place_of(described.get("hook_name") or described.get("hook_point"))
    return PretrainedSAE(sae, "SAELens", notes, described.get("model_name"), *place)


def _finetuned_decoder(weights: Weights) -> Float[Tensor, "d_sae d_in"]:
    """`W_dec`, multiplied by the fine-tuned factor per latent if there is one, which scales
    activations before decoding.
    """
    W_dec = weights["W_dec"]
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in weights:
            W_dec = W_dec * weights[name][:, None]
    return W_dec


def _read_gemma_scope(weights: Weights) -> PretrainedSAE:
    """Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147) and its second release: JumpReLU on
    inputs that are not centered. The path names model, site and layer.
    """
    path = weights.path.resolve().as_posix()
    where = path[max(0, path.find("gemma-scope")) :]
    if re.search("transcoder|crosscoder|/clt", where) or "affine_skip_connection" in weights:
        weights.refuse("a transcoder", "autoencoders of one site")
    if "/embedding" in where:
        weights.refuse("an SAE of the token embeddings", "SAEs of a layer")
    notes: list[str] = []
    layer = re.search(r"layer_(\d+)", where)
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", where)
    model_name, site = None, None
    if release:
        model_name = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
        site = {"res": "resid_post", "mlp": "mlp_out"}.get(release[3])
        if release[3] == "att":
            notes.append(ATTENTION_HEADS)
    sae = weights.converted(
        weights["W_enc"].T,
        weights["b_enc"],
        _finetuned_decoder(weights),
        weights["b_dec"],
        notes,
        threshold=weights["threshold"],
        centers=False,
    )
    number = int(layer[1]) if layer else None
    return PretrainedSAE(sae, "Gemma Scope", notes, model_name, number, site)


def _read_sparsify(weights: Weights) -> PretrainedSAE:
    """EleutherAI's sparsify; the folder is named after the module that the SAE reads."""
    config = weights.settings("cfg.json")
    if config.get("transcode") or "W_skip" in weights:
        weights.refuse("a transcoder", "autoencoders of one site")
    if config.get("activation", "topk") != "topk":
        weights.refuse(f"an SAE with '{config['activation']}' activation", "topk")
    notes: list[str] = []
    sae = weights.converted(
        weights["encoder.weight"],
        weights["encoder.bias"],
        weights["W_dec"],
        weights["b_dec"],
        notes,
        k=weights.k(config.get("k")),
    )
    place = place_of(weights.path.resolve().parent.name)
    return PretrainedSAE(sae, "sparsify", notes, None, *place)


def _read_dictionary_learning(weights: Weights) -> PretrainedSAE:
    """The dictionary_learning library: tensors of its `ae.pt`, converted to safetensors, and its
    `config.json`.
    """
    trainer = weights.settings("config.json").get("trainer", {})
    kind = trainer.get("dict_class")
    notes: list[str] = []
    k, threshold = None, None
    if kind == "AutoEncoderTopK":
        k = weights.k(trainer.get("k"))
    elif kind == "AutoEncoder":
        threshold = torch.zeros(())
    elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        threshold = weights["threshold"]
        if (threshold < 0).all():
            notes.append("Its threshold was never set, so every positive pre-activation is active.")
    else:
        weights.refuse(f"dictionary_learning's '{kind}'", "its TopK, BatchTopK, JumpReLU and ReLU")
    is_linear = "encoder.weight" in weights
    sae = weights.converted(
        weights["encoder.weight"] if is_linear else weights["W_enc"].T,
        weights["encoder.bias" if is_linear else "b_enc"],
        weights["decoder.weight"].T if is_linear else weights["W_dec"],
        weights["bias" if kind == "AutoEncoder" else "b_dec"],
        notes,
        k=k,
        threshold=threshold,
        centers=kind != "JumpReluAutoEncoder" or bool(trainer.get("apply_b_dec_to_input")),
    )
    submodule = str(trainer.get("submodule_name"))
    site = next((site for site in SAELENS_SITES if site in submodule), None)
    return PretrainedSAE(
        sae, "dictionary_learning", notes, trainer.get("lm_name"), trainer.get("layer"), site
    )


READERS: tuple[
    tuple[PretrainedFormat, Callable[[Weights], bool], Callable[[Weights], PretrainedSAE]], ...
] = (
    ("saelens", lambda w: w.path.stem == "sae_weights" and w.has_beside("cfg.json"), _read_saelens),
    ("sae-workbench", lambda w: "activation" in w.metadata, _read_ours),
    ("sparsify", lambda w: "encoder.weight" in w and "W_dec" in w, _read_sparsify),
    ("gemma-scope", lambda w: "W_enc" in w and w.path.stem == "params", _read_gemma_scope),
    ("dictionary_learning", lambda w: w.has_beside("config.json"), _read_dictionary_learning),
    ("gemma-scope", lambda w: "W_enc" in w and w.path.suffix == ".npz", _read_gemma_scope),
)
"""Formats, how to detect them, and their readers; the first match is used."""
