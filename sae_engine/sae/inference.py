"""Codes and reconstructions of an SAE that is not being trained, as fast as its device allows.

Read by `training.evaluate` and `training.heldout`, which pass activations as `Rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.kernels.cpu.step import Codes, CpuKernels
from sae_engine.sae.autoencoders import SAE, Code, TopKSAE

TOKENS_AT_ONCE = 1024
"""Tokens searched together; memory for their candidates grows with it."""


@runtime_checkable
class Rows(Protocol):
    """Activations [n, d_in] that are read in slices; every tensor of that shape is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Float[Tensor, "m d_in"]: ...


class Coder(NamedTuple):
    """An SAE's functions on activations [n, d_in], without gradients."""

    encode: Callable[[Float[Tensor, "n d_in"]], Code]
    reconstruct: Callable[[Float[Tensor, "n d_in"]], tuple[Code, Float[Tensor, "n d_in"]]]


def open_coder(sae: SAE) -> Coder:
    """A TopK SAE on a CPU uses the kernels' sparse search, as in training; others use their own
    `encode` and `decode`. So do SAEs with non-finite weights, which the search skips.
    """
    if isinstance(sae, TopKSAE) and sae.W_dec.device.type == "cpu" and sae.is_finite():
        return _sparse(sae)
    return _plain(sae)


def _plain(sae: SAE) -> Coder:
    def reconstruct(x: Tensor) -> tuple[Code, Tensor]:
        code = sae.encode(x)
        return code, sae.reconstruct(x, code)

    return Coder(sae.encode, reconstruct)


def _sparse(sae: TopKSAE) -> Coder:
    kernels = CpuKernels(
        sae.W_dec.detach(), sae.encoder_rows.detach(), sae.k, ranks_by_norm=sae.ranks_by_norm
    )
    plain = _plain(sae)

    def parts_of(x: Tensor) -> list[Codes]:
        return [kernels.encode(part - sae.b_dec, sae.b_enc) for part in x.split(TOKENS_AT_ONCE)]

    def joined(parts: list[Codes]) -> Code:
        return Code(torch.cat([p.acts for p in parts]), torch.cat([p.indices for p in parts]))

    @torch.no_grad()
    def encode(x: Tensor) -> Code:
        return joined(parts_of(x)) if x.norm().isfinite() else plain.encode(x)

    @torch.no_grad()
    def reconstruct(x: Tensor) -> tuple[Code, Tensor]:
        if not x.norm().isfinite():
            return plain.reconstruct(x)
        parts = parts_of(x)
        decoded = torch.cat([kernels.decode(part) for part in parts])
        decoded.add_(sae.b_dec)
        if sae.passes_mean:
            decoded.add_(x.mean(dim=-1, keepdim=True))
        return joined(parts), decoded

    return Coder(encode, reconstruct)
