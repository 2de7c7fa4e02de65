"""Activations on their way from the language model to the SAE: the shuffled training stream, the
held-out set.

Fed by `language_model` and `corpus`; read by `train`, `evaluate` and `feature_index.build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_engine.corpus import Cursor, PackedRows
from sae_engine.language_model import LanguageModel

TOKENS_PER_FORWARD = 4096
"""Tokens that the language model reads in one call."""
TOKENS_PER_BLOCK = 32_768
"""Tokens that are extracted and shuffled together; an activation waits for at most two blocks."""


class StreamState(NamedTuple):
    """Where the stream stands: `offset` tokens of window `window` are gone, its oldest block
    begins at `cursor`.
    """

    window: int = 0
    offset: int = 0
    cursor: Cursor = Cursor()


BEGINNING = StreamState()


class ActivationStream:
    """Batches of shuffled activations, a pure function of (text, `seed`, position).

    Block b is a run of rows. Its activations are split by a generator seeded with (seed, b): half
    of them go out in window b, half in window b + 1, each window shuffled. So a batch mixes many
    rows, nothing waits longer than two blocks, and any position can be reached again by extracting
    two blocks.
    """

    def __init__(
        self,
        model: LanguageModel,
        open_rows: Callable[[Cursor], PackedRows],
        *,
        batch_size: int,
        seed: int,
        state: StreamState = BEGINNING,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._batch_size = batch_size
        self._seed = seed
        self._check_stop = check_stop
        self._rows = open_rows(state.cursor)
        self._rows_per_block = max(1, TOKENS_PER_BLOCK // self._rows.packing.ctx_len)
        self.model_seconds = 0.0
        """Time spent in the language model so far."""
        self._state = state
        self._window_number = state.window
        self._cursors: list[Cursor] = []  # where the blocks in flight begin, oldest first
        self._waiting: Tensor | None = None
        if state.window > 0:
            _, self._waiting = self._next_block(state.window - 1)
        self._offset = state.offset
        self._window = self._next_window()

    def __iter__(self) -> ActivationStream:
        return self

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        parts: list[Tensor] = []
        wanted = self._batch_size
        while wanted:
            if self._offset == len(self._window):
                self._advance()
            part = self._window[self._offset : self._offset + wanted]
            parts.append(part)
            wanted -= len(part)
            self._offset += len(part)
        self._state = StreamState(self._window_number, self._offset, self._cursors[0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def state(self) -> StreamState:
        """From here a new stream yields exactly what followed the last batch of this one."""
        return self._state

    @property
    def first_window(self) -> Float[Tensor, "n d_in"]:
        """The window at hand, from which the input scale and the initial bias are estimated."""
        return self._window

    def _advance(self) -> None:
        self._window_number += 1
        self._offset = 0
        self._window = self._next_window()

    def _next_window(self) -> Tensor:
        now, later = self._next_block(self._window_number)
        mixed = now if self._waiting is None else torch.cat([self._waiting, now])
        self._waiting = later
        return mixed[self._permutation(len(mixed), self._window_number, 1)]

    def _next_block(self, number: int) -> tuple[Tensor, Tensor]:
        """Extract block `number`; return the part for window `number` and the part for the next."""
        self._cursors = [*self._cursors[-1:], self._rows.cursor]
        ids = torch.from_numpy(self._rows.take(self._rows_per_block))
        block = extract(self._model, ids, self._check_stop, self._count_model_time)
        order = self._permutation(len(block), number, 0)
        half = len(block) // 2
        return block[order[:half]], block[order[half:]]

    def _permutation(self, length: int, block: int, purpose: int) -> Tensor:
        seed = np.random.SeedSequence((self._seed, block, purpose)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> 1))
        return torch.randperm(length, generator=generator).to(self._model.device)

    def _count_model_time(self, seconds: float) -> None:
        self.model_seconds += seconds


def extract(
    model: LanguageModel,
    ids: Int[Tensor, "rows ctx"],
    check_stop: Callable[[], None] = lambda: None,
    on_seconds: Callable[[float], None] = lambda seconds: None,
) -> Float[Tensor, "n d_in"]:
    """Activations at the ordinary positions of `ids`, in reading order; BOS, pad and eos are
    dropped.
    """
    parts: list[Tensor] = []
    for part in ids.split(max(1, TOKENS_PER_FORWARD // ids.shape[1])):
        check_stop()
        began = time.perf_counter()
        activations = model.activations(part)
        parts.append(activations[~model.special_mask(part).to(activations.device)])
        on_seconds(time.perf_counter() - began)
    return torch.cat(parts)


class HeldoutActivations:
    """Activations of the held-out text, extracted once, as far as they are needed, into a file.

    Attributes: `ids [rows, ctx]`; `token_ids [N]`, the ordinary tokens in reading order;
    `row_starts [R + 1]`, where each row begins among them, N last; `num_tokens` N.
    """

    def __init__(
        self, model: LanguageModel, ids: Int[np.ndarray, "rows ctx"], max_tokens: int, file: Path
    ) -> None:
        self._model = model
        ordinary = ~np.isin(ids, model.excluded_ids)
        ends = np.cumsum(ordinary.sum(axis=1))
        rows = min(len(ids), int(np.searchsorted(ends, max_tokens)) + 1)
        self.ids = ids[:rows]
        self._ends = ends[:rows]
        self.token_ids = self.ids[ordinary[:rows]].astype(np.uint32)
        self.row_starts = np.concatenate([[0], self._ends]).astype(np.int64)
        self.num_tokens = len(self.token_ids)
        self._rows_done = 0
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        dtype = torch.float32 if model.dtype == torch.float32 else torch.bfloat16
        self._values = torch.from_file(
            str(file), shared=True, size=self.num_tokens * model.d_in, dtype=dtype
        ).view(self.num_tokens, model.d_in)

    def rows_for(self, num_tokens: int) -> int:
        """Number of whole rows that hold at least `num_tokens` tokens, or all."""
        return min(len(self.ids), int(np.searchsorted(self._ends, num_tokens)) + 1)

    def first(
        self, num_tokens: int, check_stop: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "n d_in"]:
        """Activations of the first rows that hold at least `num_tokens` tokens, extracted as far
        as missing.
        """
        wanted = self.rows_for(num_tokens)
        per_call = max(1, TOKENS_PER_FORWARD // self.ids.shape[1])
        while self._rows_done < wanted:
            end = min(self._rows_done + per_call, wanted)
            values = extract(
                self._model, torch.from_numpy(self.ids[self._rows_done : end]), check_stop
            )
            self._values[self.row_starts[self._rows_done] : self.row_starts[end]] = values.to(
                self._values
            )
            self._rows_done = end
        return self._values[: self.row_starts[wanted]]

    def close(self) -> None:
        """Remove the file; the memory is given back when the last view of it goes."""
        self._file.unlink(missing_ok=True)
