"""Nearest decoder rows between two SAEs of the same d_in, both ways, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.features.geometry.files import Matches, Report, no_report
from sae_engine.features.geometry.rows import DecoderRows

CHUNK_NUMBERS = 2**24
"""Maximum number of entries in each of the three matrices in memory: a chunk of rows of either SAE,
and their cosines. In float32, with copies for scaling the rows, that is 256 MiB for SAEs of any
size; results take another 16 bytes per row.
"""


@torch.no_grad()
def match_decoders(
    path_a: Path,
    path_b: Path,
    *,
    alive: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    chunk_numbers: int = CHUNK_NUMBERS,
    report: Report = no_report,
) -> Matches:
    """Compare every decoder row of one `sae.safetensors` with every row of another.

    With `alive`, masks of [d_sae of A] and [d_sae of B], only live latents are compared; the cosine
    with no row at all is -1. Ties go to the first row. Raises `IndexDamagedError` for a file that
    is not an SAE, `UserError` for different widths.
    """
    a, b = DecoderRows(path_a), DecoderRows(path_b)
    if a.d_in != b.d_in:
        raise UserError(
            f"The SAEs read activations of different widths, {a.d_in} and {b.d_in}, so their "
            "decoder rows cannot be compared."
        )
    num_rows = max(1, min(int(chunk_numbers**0.5), chunk_numbers // a.d_in))
    in_b = torch.full((a.d_sae,), -1.0), torch.zeros(a.d_sae, dtype=torch.int64)
    in_a = torch.full((b.d_sae,), -1.0), torch.zeros(b.d_sae, dtype=torch.int64)
    dead_a, dead_b = (~torch.from_numpy(each) for each in alive) if alive else (None, None)
    for first_a, rows_a in a.chunks(num_rows):
        for first_b, rows_b in b.chunks(num_rows):
            cosines = rows_a @ rows_b.T
            if dead_a is not None and dead_b is not None:
                cosines[dead_a[first_a : first_a + len(rows_a)]] = -1
                cosines[:, dead_b[first_b : first_b + len(rows_b)]] = -1
            _keep_larger(in_b, first_a, *cosines.max(dim=1), first_b)
            _keep_larger(in_a, first_b, *cosines.max(dim=0), first_a)
            done = first_a * b.d_sae + len(rows_a) * (first_b + len(rows_b))
            report("comparing decoder rows", done / (a.d_sae * b.d_sae))
    (cosines_in_b, best_in_b), (cosines_in_a, best_in_a) = in_b, in_a
    return Matches(
        best_in_b.numpy().astype("uint32"),
        cosines_in_b.numpy(),
        best_in_a.numpy().astype("uint32"),
        cosines_in_a.numpy(),
    )


def _keep_larger(
    kept: tuple[torch.Tensor, torch.Tensor],
    first: int,
    cosines: torch.Tensor,
    places: torch.Tensor,
    offset: int,
) -> None:
    """Update `kept` = (cosines, rows) in place from `first` on, wherever `cosines` is larger; row
    numbers `places` start at `offset`.
    """
    part = slice(first, first + len(cosines))
    larger = cosines > kept[0][part]
    kept[0][part][larger] = cosines[larger]
    kept[1][part][larger] = places[larger] + offset
