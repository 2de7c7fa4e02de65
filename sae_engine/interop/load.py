"""Reads SAEs of other libraries. Used by `training.pretrained`.

Every reader returns an SAE in this project's convention (`sae.SAE`): inputs centered by `b_dec`.
The same latents are active. A TopK that ranks by pre-activation keeps its decoder rows; otherwise
they get unit norm, and activations are multiplied by the original norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.interop.description import Description
from sae_engine.interop.files import find_sae
from sae_engine.interop.formats import describe_file
from sae_engine.interop.weights import Weights
from sae_engine.interrupt import CheckStop, call_interruptibly, never_stop
from sae_engine.sae.autoencoders import SAE
from sae_engine.schema.config import PretrainedFormat

SIGNED = (
    "Its activations may be negative: the negative side of latent i is latent i + {d_sae} here, "
    "with the opposite direction."
)


class PretrainedSAE(NamedTuple):
    """A loaded SAE, and what its files say about it."""

    sae: SAE
    described: Description
    notes: list[str]
    """Notes for users of the SAE: the description's, and those on its tensors."""


def load_pretrained(
    path: Path | str,
    wanted: PretrainedFormat | None = None,
    check_stop: CheckStop = never_stop,
) -> PretrainedSAE:
    """Read a trained SAE: a run's folder or its `sae.safetensors`; a folder of SAELens, sparsify or
    dictionary_learning; a file of Gemma Scope or Qwen-Scope; or one of these on the hub, as
    `hub:OWNER/NAME/PATH`.

    The format is `wanted`, or detected. Raises `UserError` for an SAE that cannot be read, or not
    exactly.
    """

    def read() -> tuple[Description, Weights]:
        file = find_sae(path)
        described = describe_file(file, wanted)
        return described, Weights(file)

    described, weights = call_interruptibly(read, check_stop)
    notes = list(described.notes)
    try:
        sae = READERS[described.format](weights, described, notes)
    except (RuntimeError, IndexError, TypeError) as error:
        raise UserError(
            f"The tensors in '{weights.file.shown}' do not fit together: {weights.shapes}; get its "
            "files again."
        ) from error
    return PretrainedSAE(sae, described, notes)


def _read_ours(weights: Weights, described: Description, notes: list[str]) -> SAE:
    return SAE.load(weights.path)


def _read_saelens(weights: Weights, described: Description, notes: list[str]) -> SAE:
    settings, kind = described.settings, described.settings["kind"]
    if "W_skip" in weights or "b_dec_out" in weights:
        weights.file.refuse("a transcoder", "autoencoders of one site")
    W_dec, k, threshold = _finetuned_decoder(weights, settings), None, None
    centers = bool(settings.get("apply_b_dec_to_input", True))
    if kind == "gated":
        return _gated(
            weights, described, weights["W_enc"].T, W_dec, gate=weights["b_gate"],
            magnitude=weights["b_mag"], b_dec=weights["b_dec"], centers=centers,
        )  # fmt: skip
    if kind in ("topk", "abstopk"):
        arguments = settings.get("activation_fn_kwargs")
        k = settings.get("k") or (arguments.get("k") if isinstance(arguments, dict) else None)
        k = weights.k(k)
    elif kind == "standard":
        threshold = torch.zeros(())
    elif kind == "jumprelu":
        is_log = "log_threshold" in weights
        threshold = weights["log_threshold"].exp() if is_log else weights["threshold"]
    else:
        threshold = weights["topk_threshold"]
    ranks_by_norm = bool(settings.get("rescale_acts_by_decoder_norm"))
    if k is None and ranks_by_norm:  # SAELens compares after rescaling, we before
        assert threshold is not None
        threshold = threshold / W_dec.norm(dim=1)
    if kind == "abstopk":
        notes.append(SIGNED.format(d_sae=len(W_dec)))
    return weights.converted(
        weights["W_enc"].T,
        weights["b_enc"],
        W_dec,
        weights["b_dec"],
        k=k,
        threshold=threshold,
        centers=centers,
        removes_mean=described.removes_mean,
        ranks_by_norm=ranks_by_norm,
        signed=kind == "abstopk",
    )


def _gated(
    weights: Weights,
    described: Description,
    W_enc: Float[Tensor, "d_sae d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    *,
    gate: Float[Tensor, " d_sae"],
    magnitude: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    centers: bool = True,
) -> SAE:
    """z = ReLU(m) where u + gate > 0, with u = x W_enc and m = exp(r_mag) u + magnitude
    (Rajamanoharan et al. 2024, arXiv 2404.16014).

    u + gate > 0 is m > magnitude - exp(r_mag) gate, so this is a JumpReLU of m.
    """
    scale = weights["r_mag"].exp()
    return weights.converted(
        W_enc * scale[:, None],
        magnitude,
        W_dec,
        b_dec,
        threshold=magnitude - scale * gate,
        centers=centers,
        removes_mean=described.removes_mean,
    )


def _finetuned_decoder(
    weights: Weights, settings: Mapping[str, object]
) -> Float[Tensor, "d_sae d_in"]:
    """`W_dec`, multiplied by the fine-tuned factor per latent if there is one, which scales
    activations before decoding.
    """
    W_dec = weights["W_dec"]
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in weights:
            factor = weights[name]
            is_one = torch.allclose(factor, torch.ones_like(factor))
            if settings.get("finetuning_scaling_factor") is False and not is_one:
                raise UserError(
                    f"'{weights.file.shown}' has a {name}, but its settings say that it has none "
                    "(finetuning_scaling_factor = false); remove one of them."
                )
            W_dec = W_dec * factor[:, None]
    return W_dec


def _read_gemma_scope(weights: Weights, described: Description, notes: list[str]) -> SAE:
    """JumpReLU on inputs that are not centered."""
    if "affine_skip_connection" in weights:
        weights.file.refuse("a transcoder", "autoencoders of one site")
    return weights.converted(
        weights["W_enc"].T,
        weights["b_enc"],
        _finetuned_decoder(weights, {}),
        weights["b_dec"],
        threshold=weights["threshold"],
        centers=False,
    )


def _read_qwen_scope(weights: Weights, described: Description, notes: list[str]) -> SAE:
    """TopK on inputs that are not centered; both matrices are transposed."""
    return weights.converted(
        weights["W_enc"],
        weights["b_enc"],
        weights["W_dec"].T,
        weights["b_dec"],
        k=described.settings["k"],
        centers=False,
    )


def _read_sparsify(weights: Weights, described: Description, notes: list[str]) -> SAE:
    if "W_skip" in weights:
        weights.file.refuse("a transcoder", "autoencoders of one site")
    signed = bool(described.settings.get("signed"))
    if signed:
        notes.append(SIGNED.format(d_sae=len(weights["W_dec"])))
    return weights.converted(
        weights["encoder.weight"],
        weights["encoder.bias"],
        weights["W_dec"],
        weights["b_dec"],
        k=weights.k(described.settings.get("k")),
        signed=signed,
    )


def _read_dictionary_learning(weights: Weights, described: Description, notes: list[str]) -> SAE:
    trainer = described.settings
    kind = trainer["dict_class"]
    is_linear = "encoder.weight" in weights
    W_enc = weights["encoder.weight"] if is_linear else weights["W_enc"].T
    W_dec = weights["decoder.weight"].T if is_linear else weights["W_dec"]
    if kind == "GatedAutoEncoder":
        return _gated(
            weights, described, W_enc, W_dec, gate=weights["gate_bias"],
            magnitude=weights["mag_bias"], b_dec=weights["decoder_bias"],
        )  # fmt: skip
    k, threshold = None, None
    if kind == "AutoEncoderTopK":
        k = weights.k(trainer.get("k"))
    elif kind == "AutoEncoder":
        threshold = torch.zeros(())
    else:
        threshold = weights["threshold"]
        if (threshold < 0).all():
            notes.append("Its threshold was never set, so every positive pre-activation is active.")
    return weights.converted(
        W_enc,
        weights["encoder.bias" if is_linear else "b_enc"],
        W_dec,
        weights["bias" if kind == "AutoEncoder" else "b_dec"],
        k=k,
        threshold=threshold,
        centers=kind != "JumpReluAutoEncoder" or bool(trainer.get("apply_b_dec_to_input")),
    )


READERS: Mapping[PretrainedFormat, Callable[[Weights, Description, list[str]], SAE]] = {
    "sae-workbench": _read_ours,
    "saelens": _read_saelens,
    "sparsify": _read_sparsify,
    "gemma-scope": _read_gemma_scope,
    "qwen-scope": _read_qwen_scope,
    "dictionary_learning": _read_dictionary_learning,
}
