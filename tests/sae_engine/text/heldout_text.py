"""Held-out rows all at once."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

import numpy as np

from sae_engine.progress import result_of
from sae_engine.schema.config import DataConfig
from sae_engine.text.order import read_mixed_heldout
from sae_engine.text.packing import Packing, each_heldout_row


def heldout_rows(config: DataConfig, packing: Packing, num_tokens: int) -> np.ndarray:
    """Rows of one dataset with at least `num_tokens` tokens, special ones but BOS included, or
    all.
    """
    num_rows = packing.rows_holding(num_tokens)
    return np.stack(list(islice(each_heldout_row(config, packing), num_rows)))


def mixed_heldout_rows(
    config: DataConfig,
    packing: Packing,
    num_tokens: int,
    excluded_ids: Collection[int] | None = None,
) -> np.ndarray:
    """What `read_mixed_heldout` returns; BOS is excluded, unless others are."""
    excluded = [packing.bos_id or 0] if excluded_ids is None else excluded_ids
    return result_of(read_mixed_heldout(config, packing, num_tokens, excluded))
