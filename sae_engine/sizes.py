"""Batch and buffer sizes. `TOKENS_PER_BLOCK` sets the order of training, and so its results; the
others set only memory and speed, apart from rounding.
"""

from __future__ import annotations

from sae_engine.schema.config import RunConfig

TOKENS_PER_FORWARD = 4096
"""Tokens that the language model reads in one call."""
TOKENS_PER_BLOCK = 32_768
"""Tokens that are extracted and shuffled together; an activation waits for at most two blocks. Rows
of text are shuffled before that only in pools larger than this.
"""
ENTRIES_PER_SORT = 2**25
"""Entries of a feature index that are sorted at once: 16 bytes each."""
LOGITS_PER_CHUNK = 2**26
"""Largest number of logits held at once while measuring cross-entropy (256 MiB in float32)."""


def num_heldout(config: RunConfig) -> int:
    """Held-out tokens that a run reads."""
    return max(config.data.heldout_tokens, config.index.tokens)


def num_stored(config: RunConfig) -> int:
    """Held-out tokens whose activations a run needs several times, so that they are stored. The
    others, in the final index alone, are encoded while they are read.
    """
    data, train, index = config.data, config.train, config.index
    again = [TOKENS_PER_BLOCK, data.heldout_tokens, train.eval_tokens, train.ce_tokens]
    if train.snapshot_every is not None:
        again.append(index.snapshot_tokens)
    return min(max(again), num_heldout(config))
