"""Brute-force statistics of a corpus in plain Python, and small cases to build indexes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from sae_engine.features.index.build import IndexCorpus, build_index
from sae_engine.features.index.codes import CorpusEncoder, Encode
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder

D_IN = 6


@cache
def byte_level_tokenizer() -> Tokenizer:
    """A GPT-2-like BPE in which `cat` comes in four spellings and `é` is two tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["cat cat cat cat Cat Cat CAT CAT dog dog in in"] * 20, trainer)
    return tokenizer


@cache
def byte_fallback_tokenizer() -> Tokenizer:
    """A Gemma-like BPE: `▁` for spaces, bytes such as `<0xC3>` for text without a token."""
    pieces = ["<pad>", "<bos>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "\n"]
    pieces += [*"acCATdgiotn", "ca", "cat", "▁cat", "Ca", "Cat", "▁Cat", "▁d", "▁do", "▁dog"]
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("C", "a"), ("Ca", "t"), ("▁", "Cat")]
    merges += [("▁", "d"), ("▁d", "o"), ("▁do", "g")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<pad>", "<bos>"])
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False)])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token by its name, such as `Ġcat`."""
    id_ = tokenizer.token_to_id(token)
    assert id_ is not None
    return id_


BOTH_TOKENIZERS = [byte_level_tokenizer, byte_fallback_tokenizer]


@dataclass(frozen=True)
class Case:
    """A corpus with its codes."""

    token_ids: NDArray[np.uint32]
    row_starts: NDArray[np.int64]
    indices: NDArray[np.int64]
    """[N, k]"""
    acts: NDArray[np.float32]
    """[N, k]; 0 is inactive."""
    d_sae: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def k(self) -> int:
        return self.indices.shape[1]

    @cached_property
    def codes(self) -> list[dict[int, float]]:
        """Per position: latent -> activation, active ones only."""
        halves = self.acts.astype(np.float16)
        return [
            {int(i): float(a) for i, a in zip(self.indices[n], halves[n], strict=True) if a > 0}
            for n in range(self.num_tokens)
        ]

    @cached_property
    def row_of(self) -> list[int]:
        bounds = self.row_starts.tolist()
        return [r for r, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]

    @cached_property
    def _active(self) -> dict[int, list[tuple[int, float]]]:
        return {
            latent: sorted(
                ((n, code[latent]) for n, code in enumerate(self.codes) if latent in code),
                key=lambda pair: (-pair[1], pair[0]),
            )
            for latent in range(self.d_sae)
        }

    def active(self, latent: int) -> list[tuple[int, float]]:
        """(position, activation), strongest first, ties by position."""
        return self._active[latent]

    def fired(self, latent: int) -> int:
        return len(self.active(latent))

    def positions_of(self, ids: Iterable[int]) -> list[int]:
        ids = set(ids)
        return [n for n, t in enumerate(self.token_ids.tolist()) if t in ids]

    def positions_of_phrase(self, phrase: list[int]) -> list[int]:
        """Positions of its last token, within one row."""
        ids = self.token_ids.tolist()
        length = len(phrase)
        return [
            n + length - 1
            for n in range(self.num_tokens - length + 1)
            if ids[n : n + length] == phrase and self.row_of[n] == self.row_of[n + length - 1]
        ]

    def statistics(self, positions: list[int]) -> dict[int, dict[str, float]]:
        """Association statistics of each latent active on any of the positions."""
        values: dict[int, list[float]] = {}
        for n in positions:
            for latent, act in self.codes[n].items():
                values.setdefault(latent, []).append(act)
        return {
            latent: association_statistics(
                acts, len(positions), self.fired(latent), self.num_tokens
            )
            for latent, acts in values.items()
        }

    def token_statistics(self, latent: int) -> dict[int, dict[str, float]]:
        """Association statistics of each token on which the latent is active."""
        tokens = {int(self.token_ids[n]) for n, _ in self.active(latent)}
        return {t: self.statistics(self.positions_of([t]))[latent] for t in tokens}

    def window(self, position: int, radius: int | None) -> tuple[int, int]:
        row = self.row_of[position]
        start, end = int(self.row_starts[row]), int(self.row_starts[row + 1])
        if radius is None:
            return start, end
        return max(start, position - radius), min(end, position + radius + 1)


def association_statistics(
    acts: list[float], group_count: int, fired: int, num_tokens: int
) -> dict[str, float]:
    recall, precision = len(acts) / group_count, len(acts) / fired
    return {
        "count": len(acts),
        "recall": recall,
        "precision": precision,
        "f1": 2 * recall * precision / (recall + precision),
        "lift": precision / (group_count / num_tokens),
        "mean_activation": sum(acts) / len(acts),
        "max_activation": max(acts),
    }


def random_case(
    seed: int,
    *,
    num_tokens: int = 200,
    k: int = 4,
    d_sae: int = 30,
    ids: Iterable[int] = range(20),
    num_rows: int = 5,
) -> Case:
    """Skewed tokens and latents, ties, zeros, latents that prefer tokens, and dead latents."""
    rng = np.random.default_rng(seed)
    ids = np.array(list(ids))
    token_ids = ids[np.minimum(rng.geometric(0.15, num_tokens) - 1, len(ids) - 1)]
    cuts = rng.choice(np.arange(1, num_tokens), min(num_rows - 1, num_tokens - 1), replace=False)
    row_starts = np.concatenate([[0], np.sort(cuts), [num_tokens]]).astype(np.int64)
    usable = max(k, d_sae - d_sae // 5)
    scores = rng.random((num_tokens, usable)) + 0.5 * (
        np.arange(usable) % len(ids) == token_ids[:, None] % len(ids)
    )
    indices = np.argsort(-scores, axis=1)[:, :k]
    steps = rng.integers(0, 12, (num_tokens, k)) / 4
    acts = np.where(rng.random((num_tokens, k)) < 0.5, steps, rng.gamma(2.0, 1.0, (num_tokens, k)))
    return Case(token_ids.astype(np.uint32), row_starts, indices, acts.astype(np.float32), d_sae)


def case_of_rows(
    rows: list[list[int]], active: Callable[[int], dict[int, float]], d_sae: int
) -> Case:
    """A case from rows of ids and a function from a position to its code."""
    token_ids = np.array([i for row in rows for i in row], np.uint32)
    codes = [active(n) for n in range(len(token_ids))]
    k = max(1, *(len(code) for code in codes))
    indices, acts = np.zeros((len(codes), k), np.int64), np.zeros((len(codes), k), np.float32)
    for n, code in enumerate(codes):
        indices[n, : len(code)] = list(code)
        acts[n, : len(code)] = list(code.values())
    starts = np.cumsum([0] + [len(row) for row in rows])
    return Case(token_ids, starts, indices, acts, d_sae)


def build(
    folder: Path,
    case: Case,
    *,
    tokenizer: Tokenizer | None = None,
    step: int = 7,
    activations: torch.Tensor | None = None,
    encode: Encode | None = None,
    text_breaks: NDArray[np.int64] | None = None,
    **options: Any,
) -> Path:
    """Build the index of a case, with an `encode` that looks up the codes; return its folder."""
    tokenizer = tokenizer or byte_level_tokenizer()
    acts, indices = torch.from_numpy(case.acts), torch.from_numpy(case.indices)

    def look_up(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        where = x[:, 0].long()
        return acts[where], indices[where]

    if activations is None:
        activations = torch.arange(case.num_tokens, dtype=torch.float32)[:, None]
    run = RunFolder(folder)
    with CorpusEncoder(
        run.index_codes,
        encode or look_up,
        d_sae=case.d_sae,
        k=options.pop("k", case.k),
        device=torch.device("cpu"),
    ) as encoder:
        encoder.add(activations)
        codes = encoder.finish()
    defaults: dict[str, Any] = {
        "tokens": 1000,
        "corpus": IndexCorpus(codes, case.token_ids, case.row_starts, text_breaks),
        "W_dec": torch.randn(case.d_sae, D_IN, generator=torch.Generator().manual_seed(0)),
        "tokenizer": tokenizer,
        "vocab_size": tokenizer.get_vocab_size(),
        "write_sae": lambda path: path.write_bytes(b"weights"),
    }
    build_index(run, step=step, **(defaults | options))
    return run.feature_index(step)


def built(folder: Path, case: Case, **options: Any) -> FeatureIndex:
    return FeatureIndex.open(build(folder, case, **options))
