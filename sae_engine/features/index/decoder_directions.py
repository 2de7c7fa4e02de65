"""What can be read from decoder rows alone: the logits they change, and their nearest rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae_engine.features.index.format import ArrayWriter

NUM_LOGITS = 10
NUM_NEIGHBOURS = 10
CHUNK_SCORES = 2**24
"""Maximum number of entries of a chunk's score matrix."""


@torch.no_grad()
def write_logits(
    folder: Path, W_dec: Tensor, unembed: Tensor, check_stop: Callable[[], None]
) -> None:
    """Write the tokens whose logits each row of `W_dec` [d_sae, d_in] raises and lowers most.

    `unembed` is [vocab, d_in]; the logits are `W_dec @ unembed.T`.
    """
    num = min(NUM_LOGITS, len(unembed))
    directions = unembed.to(W_dec.device, torch.float32).T
    with (
        ArrayWriter(folder, "positive_logit_ids", np.uint32, num) as positive_ids,
        ArrayWriter(folder, "positive_logits", np.float32, num) as positive_values,
        ArrayWriter(folder, "negative_logit_ids", np.uint32, num) as negative_ids,
        ArrayWriter(folder, "negative_logits", np.float32, num) as negative_values,
    ):
        for rows in W_dec.split(max(1, CHUNK_SCORES // len(unembed))):
            check_stop()
            logits = rows.float() @ directions
            values, ids = logits.topk(num, dim=1)
            positive_ids.append(ids.cpu().numpy())
            positive_values.append(values.cpu().numpy())
            values, ids = logits.topk(num, dim=1, largest=False)
            negative_ids.append(ids.cpu().numpy())
            negative_values.append(values.cpu().numpy())


@torch.no_grad()
def write_neighbours(folder: Path, W_dec: Tensor, check_stop: Callable[[], None]) -> None:
    """Write, for each row of `W_dec` [d_sae, d_in], the other rows with the highest cosine."""
    unit = normalize(W_dec.float(), dim=1)
    num = min(NUM_NEIGHBOURS, len(unit) - 1)
    with (
        ArrayWriter(folder, "neighbour_indices", np.uint32, num) as indices_out,
        ArrayWriter(folder, "neighbour_cosines", np.float32, num) as cosines_out,
    ):
        for cosines, indices in nearest_rows(unit, num):
            check_stop()
            indices_out.append(indices.cpu().numpy())
            cosines_out.append(cosines.cpu().numpy())


def nearest_rows(
    unit: Float[Tensor, "n d_in"], num: int
) -> Iterator[tuple[Float[Tensor, "m num"], Int[Tensor, "m num"]]]:
    """Cosines and indices of the `num` other rows with the highest cosine to each unit row, best
    first, in chunks of at most `CHUNK_SCORES` cosines.
    """
    chunk = max(1, CHUNK_SCORES // len(unit))
    for first in range(0, len(unit), chunk):
        cosines = unit[first : first + chunk] @ unit.T
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, own + first] = -torch.inf
        values, indices = cosines.topk(num, dim=1)
        yield values, indices
