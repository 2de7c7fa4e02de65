"""Readable PyTorch versions of top-k selection and sparse decoding, differentiable by autograd."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def select_topk(
    pre: Float[Tensor, "n d_sae"], norms: Float[Tensor, " d_sae"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """relu(pre) and the indices of the k latents of each row with the largest relu(pre) * norms.

    If fewer than k pre-activations are positive, the remaining activations are 0.
    """
    with torch.no_grad():
        indices = (pre * norms).topk(k, dim=-1, sorted=False).indices
    return torch.relu(pre.gather(-1, indices)), indices


def decode(
    acts: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "n d_in"]:
    """The sums of the chosen decoder rows, weighted by the activations; without the bias."""
    dense = torch.zeros(len(acts), len(W_dec), dtype=acts.dtype, device=acts.device)
    return dense.scatter(-1, indices, acts) @ W_dec
