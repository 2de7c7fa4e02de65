"""Sparse codes and rows of weights on a GPU: decoding and gathered dot products, as Triton kernels.

Rows are gathered a few at a time, in blocks of columns, so that many loads are in flight and
inactive slots load nothing. Used by `sae.triton_step` and `rows`.
"""

from __future__ import annotations

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_engine.kernels.gpu.compiled import blocks, power_of_2, triton_kernel
from sae_engine.kernels.gpu.select import Codes

MAX_COLUMNS = 256
"""Upper limit of the columns that a program loads at once."""
ROWS = 8
"""Rows that a program loads at once."""


def column_block(d_in: int) -> int:
    """Columns that a program loads at once from rows of length d_in."""
    return min(MAX_COLUMNS, power_of_2(d_in))


@triton_kernel
def _decode(
    acts, indices, kept, table, decoded, k, d_in, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """decoded [n, d_in] = sums of the active rows of table [d_sae, d_in], weighted by acts [n, k];
    one program per token and block of columns.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d_in
    last = tl.load(kept + token)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, last, ROWS):
        slots = first + tl.arange(0, ROWS)
        act = tl.load(acts + token * k + slots, slots < last, 0.0)
        latents = tl.load(indices + token * k + slots, slots < last, 0).to(tl.int64)
        rows = tl.load(
            table + latents[:, None] * d_in + columns[None, :],
            (slots < last)[:, None] & inside[None, :],
            0.0,
        )
        total += tl.sum(act[:, None] * rows, 0)
    tl.store(decoded + token * d_in + columns, total, inside)


@triton_kernel
def _gather_dot(
    rows, table, indices, lengths, bias, dots, k, d_in, added,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dots[n, j] = <rows[n], table[indices[n, j]]> + bias[indices[n, j]] + added for the first
    lengths[n] of a row's k slots, 0 for the others; one program per token and ROWS slots.
    """
    token = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    length = tl.load(lengths + token)
    inside = slots < length
    total = tl.zeros([ROWS], tl.float32)
    if tl.program_id(1) * ROWS < length:
        latents = tl.load(indices + token * k + slots, inside, 0).to(tl.int64)
        for first in range(0, d_in, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            row = tl.load(rows + token * d_in + columns, columns < d_in, 0.0)
            tile = tl.load(
                table + latents[:, None] * d_in + columns[None, :],
                inside[:, None] & (columns < d_in)[None, :],
                0.0,
            )
            total += tl.sum(tile * row[None, :], 1)
        if HAS_BIAS:
            total += tl.load(bias + latents, inside, 0.0)
        total = tl.where(inside, total + added, 0.0)
    tl.store(dots + token * k + slots, total, slots < k)


def decode(codes: Codes, table: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"]:
    """Sums of the table rows that the codes select, weighted by the activations."""
    (n, k), d_in = codes.acts.shape, table.shape[1]
    columns = column_block(d_in)
    decoded = torch.empty(n, d_in, dtype=torch.float32, device=table.device)
    _decode[(n, blocks(d_in, columns))](*codes, table, decoded, k, d_in, ROWS=ROWS, COLUMNS=columns)
    return decoded


def gather_dot(
    rows: Float[Tensor, "n d_in"],
    table: Float[Tensor, "d_sae d_in"],
    indices: Int[Tensor, "n k"],
    lengths: Int[Tensor, " n"],
    *,
    bias: Float[Tensor, " d_sae"] | None = None,
    added: float = 0.0,
) -> Float[Tensor, "n k"]:
    """Dot products of row n with the table rows indices[n, :lengths[n]], plus their bias and
    `added`; 0 in the other slots. `indices` and `lengths` are int32.
    """
    (n, k), d_in = indices.shape, table.shape[1]
    dots = torch.empty(n, k, dtype=torch.float32, device=table.device)
    _gather_dot[(n, blocks(k, ROWS))](
        rows, table, indices, lengths, bias, dots, k, d_in, added,
        HAS_BIAS=bias is not None, ROWS=ROWS, COLUMNS=column_block(d_in),
    )  # fmt: skip
    return dots
