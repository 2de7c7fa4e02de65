"""Builds a feature index: sorts the codes of a corpus.

`training` passes the corpus, encoded by `codes`; `reader` reads the result. Memory is bounded by
the ranges that are sorted at once (`ENTRIES_PER_SORT`) and by arrays of length d_sae, V and N;
nothing is [N, d_sae].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from sae_engine.features.index.codes import Codes
from sae_engine.features.index.decoder_directions import write_logits, write_neighbours
from sae_engine.features.index.format import SAE, TOKENIZER, array_file, save_array
from sae_engine.features.index.invert import (
    group_bounds,
    invert_by_latent,
    invert_by_token,
    rank_tokens_by_latent,
)
from sae_engine.features.index.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    describe_files,
)
from sae_engine.features.index.vocabulary import token_bytes
from sae_engine.files import RunFolder, published_folder
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.schema.records import SnapshotRecord


class IndexCorpus(NamedTuple):
    """An encoded text, without excluded positions (BOS, pad, EOS, outliers)."""

    codes: Codes
    """Their files are moved into the index."""
    token_ids: NDArray[np.uint32]
    """[N]"""
    row_starts: NDArray[np.int64]
    """[R + 1] first position of each row, and N."""
    text_breaks: NDArray[np.int64] | None = None
    """Positions before which tokens of the text were left out, ascending, if known."""


def build_index(
    folder: RunFolder,
    *,
    step: int,
    tokens: int,
    corpus: IndexCorpus,
    W_dec: Tensor,
    tokenizer: Tokenizer,
    vocab_size: int,
    write_sae: Callable[[Path], None],
    unembed: Tensor | None = None,
    largest_norm: float = math.inf,
    final: bool = False,
    check_stop: CheckStop = never_stop,
) -> SnapshotRecord:
    """Publish `features/<step>/` whole; return a record of what it covers.

    `W_dec` is [d_sae, d_in]; `unembed` is [vocab, d_in], the linear part of final norm and head;
    `tokens` is the number of tokens that the SAE was trained on; `largest_norm` is that of tokens
    of `corpus`, for those who read other text. Logits and neighbors are computed only for a `final`
    index. `check_stop` is called often and raises to abort, which leaves no files behind.
    """
    began = time.perf_counter()
    codes, num_tokens = corpus.codes, len(corpus.token_ids)
    assert corpus.row_starts[0] == 0
    assert corpus.row_starts[-1] == num_tokens == codes.num_tokens
    assert int(corpus.token_ids.max()) < vocab_size

    with published_folder(folder.feature_index(step)) as target:
        for name in ("indices", "acts"):
            (codes.folder / array_file(name)).rename(target / array_file(name))
        save_array(target, "token_ids", corpus.token_ids.astype(np.uint32))
        save_array(target, "row_starts", corpus.row_starts.astype(np.int64))
        if corpus.text_breaks is not None:
            save_array(target, "text_breaks", corpus.text_breaks.astype(np.int64))
        invert_by_latent(target, codes.fired, check_stop=check_stop)
        invert_by_token(target, vocab_size, check_stop=check_stop)
        rank_tokens_by_latent(target, check_stop=check_stop)
        if final:
            write_neighbours(target, W_dec, check_stop)
            if unembed is not None:
                write_logits(target, W_dec, unembed, check_stop)
        _write_vocabulary(target, tokenizer, vocab_size)
        write_sae(target / SAE)
        check_stop()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            step=step,
            tokens=tokens,
            num_tokens=num_tokens,
            num_rows=len(corpus.row_starts) - 1,
            k=codes.width,
            d_sae=len(W_dec),
            vocab_size=vocab_size,
            act_scale=codes.act_scale,
            largest_norm=largest_norm if math.isfinite(largest_norm) else None,
            final=final,
            created_at=datetime.now(UTC),
            files=describe_files(target),
        )
        (target / MANIFEST).write_text(manifest.model_dump_json(indent=1), "utf-8")

    seconds = time.perf_counter() - began
    return SnapshotRecord(
        step=step, tokens=tokens, index_tokens=num_tokens, seconds=seconds, final=final
    )


def _write_vocabulary(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    pieces = token_bytes(tokenizer, vocab_size)
    save_array(folder, "vocabulary_offsets", group_bounds(np.array([len(p) for p in pieces])))
    save_array(folder, "vocabulary_bytes", np.frombuffer(b"".join(pieces), np.uint8))
    tokenizer.save(str(folder / TOKENIZER))
