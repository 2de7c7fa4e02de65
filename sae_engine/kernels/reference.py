"""Readable PyTorch versions of what the SAE does with sparse codes; autograd gives their
gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def select_topk(
    pre: Float[Tensor, "n d_sae"], norms: Float[Tensor, " d_sae"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of relu(pre) * norms in each row: their relu(pre) and their latents' numbers.

    A row with fewer than k positive pre-activations is filled with zeros, which count as not
    active.
    """
    with torch.no_grad():
        indices = (pre * norms).topk(k, dim=-1, sorted=False).indices
    return torch.relu(pre.gather(-1, indices)), indices


def decode(
    acts: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "n d_in"]:
    """Sum of the chosen decoder rows, weighted by the activations."""
    dense = torch.zeros(len(acts), len(W_dec), dtype=acts.dtype, device=acts.device)
    return dense.scatter(-1, indices, acts) @ W_dec
