"""The shuffled stream of activations that SAEs train on.

Fed by an `ActivationSource`, the language model reading text or activation files; read by
`training`. One forward pass can feed several hook points, so whatever comes from it is a list with
one tensor per hook.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import LanguageModel
from sae_engine.sizes import TOKENS_PER_BLOCK, TOKENS_PER_FORWARD
from sae_engine.text.context import read_rows
from sae_engine.text.order import RowCursor, Rows
from sae_engine.text.overlap import TextOverlap
from sae_engine.text.packing import Cursor

TimeCall = Callable[[], AbstractContextManager[object]]
"""Opens a context that times a call of the language model."""
SourceCursor = Cursor | RowCursor
"""A position in activation files or in text."""


def rows_per_block(ctx_len: int) -> int:
    """Rows of text in a block."""
    return max(1, TOKENS_PER_BLOCK // ctx_len)


class ActivationSource(Protocol):
    """Blocks of activations in a fixed order, without end."""

    @property
    def cursor(self) -> SourceCursor:
        """Where the next block begins."""
        ...

    def next_block(self) -> list[Float[Tensor, "n d_in"]]:
        """The next block at every hook."""
        ...


class TextBlock(NamedTuple):
    """The text of a block of activations."""

    cursor: RowCursor
    """Where it begins."""
    ids: Int[np.ndarray, "rows ctx"]
    at: Bool[np.ndarray, "rows ctx"]
    """Where in it activations are taken."""


NO_TEXT = TextBlock(RowCursor((), ()), np.empty((0, 0), np.int64), np.empty((0, 0), np.bool_))


class ModelSource:
    """The activations of a language model reading rows of text."""

    def __init__(
        self,
        model: LanguageModel,
        rows: Rows,
        check_stop: CheckStop = never_stop,
        time_call: TimeCall = nullcontext,
        overlap: TextOverlap | None = None,
    ) -> None:
        """`overlap` receives every row that is read."""
        self._overlap = overlap
        self._model = model
        self._rows = rows
        self._check_stop = check_stop
        self._time_call = time_call
        self.last = NO_TEXT
        """The text of the last block."""

    @property
    def cursor(self) -> RowCursor:
        return self._rows.cursor

    def next_block(self) -> list[Float[Tensor, "n d_in"]]:
        text = self.next_text()
        self.give_out(text)
        return self.read(text)

    def next_text(self) -> TextBlock:
        cursor = self.cursor
        ids, counted = read_rows(self._next_rows())
        return TextBlock(cursor, ids, counted & ~np.isin(ids, self._model.excluded_ids))

    def give_out(self, text: TextBlock) -> None:
        """Note that this is the text of the next block that is trained on."""
        self.last = text
        if self._overlap is not None:
            self._overlap.read_(text.ids, text.at)

    def read(self, text: TextBlock) -> list[Float[Tensor, "n d_in"]]:
        ids, at = torch.from_numpy(text.ids), torch.from_numpy(text.at)
        return extract(self._model, ids, self._check_stop, self._time_call, at=at)

    def _next_rows(self) -> Int[np.ndarray, "rows ctx"]:
        """The rows of a block, or of several if more than half of their tokens are context."""
        num_rows = rows_per_block(self._rows.packing.ctx_len)
        parts = [self._rows.take(num_rows)]
        while 2 * sum(int((rows >= 0).sum()) for rows in parts) < parts[0].size:
            self._check_stop()
            parts.append(self._rows.take(num_rows))
        return np.concatenate(parts)


def extract(
    model: LanguageModel,
    ids: Int[Tensor, "rows ctx"],
    check_stop: CheckStop = never_stop,
    time_call: TimeCall = nullcontext,
    at: Bool[Tensor, "rows ctx"] | None = None,
) -> list[Float[Tensor, "n d_in"]]:
    """Activations at the positions `at` of `ids`, by default all but BOS, pad and eos, in reading
    order, at every hook.
    """
    at = ~model.special_mask(ids) if at is None else at
    parts: list[list[Tensor]] = []
    num_rows = max(1, TOKENS_PER_FORWARD // ids.shape[1])
    for part, here in zip(ids.split(num_rows), at.split(num_rows), strict=True):
        check_stop()
        with time_call():
            parts.append([hook[here.to(hook.device)] for hook in model.all_activations(part)])
    return [torch.cat(hook) for hook in zip(*parts, strict=True)]


class StreamState(NamedTuple):
    """The stream's position: `offset` tokens of window `window` have been given out, and the oldest
    block in it begins at `cursor`.
    """

    window: int = 0
    offset: int = 0
    cursor: SourceCursor = Cursor()


BEGINNING = StreamState()


class ActivationStream:
    """Batches of shuffled activations, a pure function of (source, `seed`, position).

    A generator seeded with (seed, number of the block) splits each block: half of its activations
    go out in the block's own window, half in the next one, and each window is shuffled. So a batch
    mixes many rows, no activation waits longer than two blocks, and reading two blocks is enough to
    continue from any position. All hooks are shuffled alike.
    """

    def __init__(
        self,
        open_source: Callable[[SourceCursor], ActivationSource],
        *,
        batch_size: int,
        seed: int,
        state: StreamState = BEGINNING,
    ) -> None:
        self.source = open_source(state.cursor)
        self._batch_size = batch_size
        self._seed = seed
        self._state = state
        self._window_number = state.window
        self._cursors: list[SourceCursor] = []  # where the blocks in flight begin, oldest first
        self._waiting: list[Tensor] | None = None
        if state.window > 0:
            _, self._waiting = self._next_block(state.window - 1)
        self._offset = state.offset
        self._window = self._next_window()

    def __iter__(self) -> ActivationStream:
        return self

    def __next__(self) -> list[Float[Tensor, "batch d_in"]]:
        parts: list[list[Tensor]] = []
        wanted = self._batch_size
        while wanted:
            if self._offset == len(self._window[0]):
                self._window_number += 1
                self._offset = 0
                self._window = self._next_window()
            part = [hook[self._offset : self._offset + wanted] for hook in self._window]
            parts.append(part)
            wanted -= len(part[0])
            self._offset += len(part[0])
        self._state = StreamState(self._window_number, self._offset, self._cursors[0])
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(hook) for hook in zip(*parts, strict=True)]

    @property
    def state(self) -> StreamState:
        """A new stream from this state yields exactly what follows the last batch of this one."""
        return self._state

    @property
    def first_window(self) -> list[Float[Tensor, "n d_in"]]:
        """The current window, from which input scale and initial bias are estimated."""
        return self._window

    def _next_window(self) -> list[Tensor]:
        window, later = self._next_block(self._window_number)
        if self._waiting is not None:
            window = [torch.cat(pair) for pair in zip(self._waiting, window, strict=True)]
        self._waiting = later
        order = self._permutation(len(window[0]), self._window_number, 1).to(window[0].device)
        return [hook[order] for hook in window]

    def _next_block(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Read block `number`; return the part for window `number` and the part for the next."""
        self._cursors = [*self._cursors[-1:], self.source.cursor]
        block = self.source.next_block()
        order = self._permutation(len(block[0]), number, 0).to(block[0].device)
        half = len(order) // 2
        return [hook[order[:half]] for hook in block], [hook[order[half:]] for hook in block]

    def _permutation(self, length: int, block: int, purpose: int) -> Tensor:
        seed = np.random.SeedSequence((self._seed, block, purpose)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> 1))
        return torch.randperm(length, generator=generator)
