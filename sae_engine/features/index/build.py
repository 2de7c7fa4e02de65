"""Builds a feature index: encode the index corpus once, then sort the codes.

`training` passes a corpus of activations and an SAE's `encode`; `reader` reads the result. Memory
is bounded by the ranges that are sorted at once (`invert.MAX_ENTRIES`) and by arrays of length
d_sae and V; nothing is [N, d_sae].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.features.index.decoder_directions import write_logits, write_neighbours
from sae_engine.features.index.format import (
    SAE,
    TOKENIZER,
    ArrayWriter,
    array_file,
    save_array,
)
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
from sae_engine.sae.inference import Rows
from sae_engine.schema.records import SnapshotRecord

ENCODE_CHUNK_TOKENS = 4096
MIN_ACT = 2.0**-24
"""Smallest positive float16."""
TOP_EXPONENT = 15
"""Stored activations are at most 2^15, so that half of them use the finest digits of float16 and
none overflows when it is rounded.
"""

LEAST_EXPONENT = -140
"""Of a scale that float32 can still represent; also that of chunks before the first active one."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


class ActivationRangeError(UserError):
    """A latent's activation is not finite."""


class IndexCorpus(NamedTuple):
    """Activations of the indexed text, without excluded positions (BOS, pad, EOS, outliers)."""

    activations: Rows
    """[N, d_in] float32, float16 or bfloat16; may be memory-mapped."""
    token_ids: NDArray[np.uint32]
    """[N]"""
    row_starts: NDArray[np.int64]
    """[R + 1] first position of each row, and N."""
    text_breaks: NDArray[np.int64] | None = None
    """Positions before which tokens of the text were left out, ascending, if known."""

    def first(self, num_tokens: int) -> IndexCorpus:
        """The first `num_tokens` positions; the last row may be cut."""
        num_tokens = min(num_tokens, len(self.token_ids))
        starts, breaks = self.row_starts[self.row_starts < num_tokens], self.text_breaks
        return IndexCorpus(
            self.activations[:num_tokens],
            self.token_ids[:num_tokens],
            np.append(starts, num_tokens),
            None if breaks is None else breaks[breaks < num_tokens],
        )


def build_index(
    folder: RunFolder,
    *,
    step: int,
    tokens: int,
    corpus: IndexCorpus,
    encode: Encode,
    W_dec: Tensor,
    k: int | None,
    tokenizer: Tokenizer,
    vocab_size: int,
    write_sae: Callable[[Path], None],
    max_tokens: int | None = None,
    unembed: Tensor | None = None,
    largest_norm: float = math.inf,
    final: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> SnapshotRecord:
    """Publish `features/<step>/` in one rename; return a record of what it covers.

    `encode` maps [n, d_in] float32 on `W_dec`'s device to (acts [n, k], indices [n, k]). If `k` is
    None, the width of codes may vary between calls; the corpus is then encoded twice, first to find
    the largest width. `W_dec` is [d_sae, d_in]; `unembed` is [vocab, d_in], the linear part of
    final norm and head; `tokens` is the number of tokens that the SAE was trained on;
    `largest_norm` is that of tokens of `corpus`, for those who read other text. Logits and
    neighbors are computed only for a `final` index. `check_stop` is called often and raises to
    abort, which leaves no files behind. Raises `ActivationRangeError` for activations that are not
    finite.
    """
    began = time.perf_counter()
    corpus = corpus if max_tokens is None else corpus.first(max_tokens)
    num_tokens, d_sae = len(corpus.token_ids), len(W_dec)
    if num_tokens == 0:
        raise UserError("The index corpus has no tokens; use a dataset with more held-out text.")
    assert corpus.row_starts[0] == 0
    assert corpus.row_starts[-1] == num_tokens == len(corpus.activations)
    assert int(corpus.token_ids.max()) < vocab_size

    with published_folder(folder.feature_index(step)) as target:
        save_array(target, "token_ids", corpus.token_ids.astype(np.uint32))
        save_array(target, "row_starts", corpus.row_starts.astype(np.int64))
        if corpus.text_breaks is not None:
            save_array(target, "text_breaks", corpus.text_breaks.astype(np.int64))
        codes = partial(_codes, corpus.activations, encode, W_dec.device, check_stop)
        width = k or max(indices.shape[1] for _, indices in codes())
        fired, act_scale = _write_codes(target, codes(), d_sae, width)
        invert_by_latent(target, fired, check_stop=check_stop)
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
            k=width,
            d_sae=d_sae,
            vocab_size=vocab_size,
            act_scale=act_scale,
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


@torch.no_grad()
def _codes(
    activations: Rows,
    encode: Encode,
    device: torch.device,
    check_stop: Callable[[], None],
) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """Acts and indices of the corpus, in chunks."""
    for a in range(0, len(activations), ENCODE_CHUNK_TOKENS):
        check_stop()
        x = activations[a : a + ENCODE_CHUNK_TOKENS].to(device, torch.float32)
        acts, indices = encode(x)
        assert acts.shape == indices.shape
        assert len(acts) == len(x)
        yield acts.float().cpu().numpy(), indices.cpu().numpy()


def _write_codes(
    folder: Path,
    codes: Iterator[tuple[NDArray[np.float32], NDArray[Any]]],
    d_sae: int,
    width: int,
) -> tuple[NDArray[np.int64], float]:
    """Write `indices` and `acts`, zero-padded to `width`. Return the number of positions on which
    each latent is active, [d_sae], and what stored activations are to be multiplied by.

    The largest activation is known only at the end. Until then each chunk is scaled by the largest
    so far; at the end, the chunks that came before it are scaled again.
    """
    index_type = np.uint16 if d_sae <= 2**16 else np.uint32
    fired = np.zeros(d_sae, np.int64)
    exponents: list[int] = []
    lengths: list[int] = []
    with (
        ArrayWriter(folder, "indices", index_type, width) as indices_out,
        ArrayWriter(folder, "acts", np.float16, width) as acts_out,
    ):
        for acts, indices in codes:
            _require_finite(acts, indices)
            largest = acts.max(initial=0.0)
            needed = int(np.frexp(largest)[1]) - TOP_EXPONENT if largest > 0 else LEAST_EXPONENT
            exponents.append(max(LEAST_EXPONENT, needed, *exponents[-1:]))
            lengths.append(len(acts))
            fired += np.bincount(indices[acts > 0], minlength=d_sae)
            missing = ((0, 0), (0, width - acts.shape[1]))
            indices_out.append(np.pad(indices, missing))
            acts_out.append(np.pad(_scaled(acts, -exponents[-1]), missing))
    return fired, _rescale(folder, exponents, lengths)


def _rescale(folder: Path, exponents: Sequence[int], lengths: Sequence[int]) -> float:
    """Scale all chunks of `acts` by the last chunk's exponent; return 2 to its power."""
    acts, first = np.load(folder / array_file("acts"), mmap_mode="r+"), 0
    for exponent, length in zip(exponents, lengths, strict=True):
        if exponent < exponents[-1]:
            chunk = acts[first : first + length]
            chunk[:] = _scaled(chunk.astype(np.float32), exponent - exponents[-1])
        first += length
    acts.flush()
    return 2.0 ** exponents[-1]


def _scaled(acts: NDArray[np.float32], exponent: int) -> NDArray[np.float16]:
    """Multiply by a power of two and round to float16, keeping active latents active."""
    scaled = np.ldexp(acts, exponent)
    return np.where(acts > 0, np.maximum(scaled, MIN_ACT), 0).astype(np.float16)


def _require_finite(acts: NDArray[np.float32], indices: NDArray[Any]) -> None:
    bad = np.argwhere(~np.isfinite(acts))
    if len(bad):
        where = tuple(bad[0])
        raise ActivationRangeError(
            f"Latent {indices[where]} has activation {acts[where]:g} on the index corpus; check "
            "for a diverging loss, or for a model.dtype that the language model overflows."
        )
    assert (acts >= 0).all()


def _write_vocabulary(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    pieces = token_bytes(tokenizer, vocab_size)
    save_array(folder, "vocabulary_offsets", group_bounds(np.array([len(p) for p in pieces])))
    save_array(folder, "vocabulary_bytes", np.frombuffer(b"".join(pieces), np.uint8))
    tokenizer.save(str(folder / TOKENIZER))
