"""Activations on their way from the language model to the SAEs: the shuffled training stream, the
held-out set.

Fed by `language_model` and `corpus`, or by `activation_files`; read by `train`, `evaluate` and
`feature_index.build`. One forward pass can feed several hook points: whatever comes from it is a
list with one tensor per hook.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_engine.files import room_needed
from sae_engine.model.language_model import LanguageModel
from sae_engine.sizes import TOKENS_PER_BLOCK, TOKENS_PER_FORWARD
from sae_engine.text.packing import Cursor, PackedRows

TimeCall = Callable[[], AbstractContextManager[object]]
"""Opens a context around each call of the language model, to time it."""


def rows_per_block(ctx_len: int) -> int:
    """Rows of text in a block."""
    return max(1, TOKENS_PER_BLOCK // ctx_len)


class Source(Protocol):
    """Blocks of activations in a fixed order, without end."""

    @property
    def cursor(self) -> Cursor:
        """Where the next block begins."""
        ...

    def next_block(self) -> list[Float[Tensor, "n d_in"]]:
        """The next block at every hook."""
        ...


class TextSource:
    """Reads text with the language model."""

    def __init__(
        self,
        model: LanguageModel,
        rows: PackedRows,
        check_stop: Callable[[], None] = lambda: None,
        time_call: TimeCall = nullcontext,
    ) -> None:
        self._model = model
        self._rows = rows
        self._check_stop = check_stop
        self._time_call = time_call
        self.last_ids: Int[np.ndarray, "rows ctx"] = np.empty((0, 0), np.int64)
        """What the last block was read from."""

    @property
    def cursor(self) -> Cursor:
        return self._rows.cursor

    def next_block(self) -> list[Float[Tensor, "n d_in"]]:
        self.last_ids = self._rows.take(rows_per_block(self._rows.packing.ctx_len))
        ids = torch.from_numpy(self.last_ids)
        return extract(self._model, ids, self._check_stop, self._time_call)


class StreamState(NamedTuple):
    """Where the stream stands: `offset` tokens of window `window` are gone, its oldest block
    begins at `cursor`.
    """

    window: int = 0
    offset: int = 0
    cursor: Cursor = Cursor()


BEGINNING = StreamState()


class ActivationStream:
    """Batches of shuffled activations, a pure function of (source, `seed`, position).

    A block's activations are split by a generator seeded with (seed, number of the block): half of
    them go out in the block's window, half in the next, each window shuffled. So a batch mixes many
    rows, nothing waits longer than two blocks, and any position can be reached again by reading two
    blocks. All hooks are shuffled alike.
    """

    def __init__(
        self,
        open_source: Callable[[Cursor], Source],
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
        self._cursors: list[Cursor] = []  # where the blocks in flight begin, oldest first
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
        """From here a new stream yields exactly what followed the last batch of this one."""
        return self._state

    @property
    def first_window(self) -> list[Float[Tensor, "n d_in"]]:
        """The window at hand, from which the input scale and the initial bias are estimated."""
        return self._window

    def _next_window(self) -> list[Tensor]:
        now, later = self._next_block(self._window_number)
        mixed = (
            now
            if self._waiting is None
            else [torch.cat(pair) for pair in zip(self._waiting, now, strict=True)]
        )
        self._waiting = later
        order = self._permutation(len(mixed[0]), self._window_number, 1).to(mixed[0].device)
        return [hook[order] for hook in mixed]

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


def extract(
    model: LanguageModel,
    ids: Int[Tensor, "rows ctx"],
    check_stop: Callable[[], None] = lambda: None,
    time_call: TimeCall = nullcontext,
) -> list[Float[Tensor, "n d_in"]]:
    """Activations at the ordinary positions of `ids`, in reading order, at every hook; BOS, pad and
    eos are dropped.
    """
    parts: list[list[Tensor]] = []
    for part in ids.split(max(1, TOKENS_PER_FORWARD // ids.shape[1])):
        check_stop()
        with time_call():
            ordinary = ~model.special_mask(part)
            parts.append([hook[ordinary.to(hook.device)] for hook in model.all_activations(part)])
    return [torch.cat(hook) for hook in zip(*parts, strict=True)]


class Heldout(Protocol):
    """Activations that are never trained on."""

    @property
    def ids(self) -> Int[np.ndarray, "rows ctx"] | None:
        """The rows they come from, if known."""
        ...

    @property
    def token_ids(self) -> Int[np.ndarray, " N"] | None:
        """The tokens they were read at, if known."""
        ...

    @property
    def row_starts(self) -> Int[np.ndarray, " rows_plus_1"]:
        """Where each row begins among the tokens, their number last."""
        ...

    @property
    def num_tokens(self) -> int: ...

    def first(
        self, hook: int, num_tokens: int, check_stop: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "n d_in"]:
        """Activations of the first rows that hold at least `num_tokens` tokens."""
        ...

    def close(self) -> None: ...


def rows_for(heldout: Heldout, num_tokens: int) -> int:
    """Number of whole rows that hold at least `num_tokens` tokens, or all."""
    ends = heldout.row_starts[1:]
    return min(len(ends), int(np.searchsorted(ends, num_tokens)) + 1)


class HeldoutText:
    """Held-out text, read once by the language model, as far as it is needed, into files.

    See `Heldout` for the attributes. One file per hook, in `folder`.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Int[np.ndarray, "rows ctx"],
        max_tokens: int,
        folder: Path,
    ) -> None:
        self._model = model
        ordinary = ~np.isin(ids, model.excluded_ids)
        ends = np.cumsum(ordinary.sum(axis=1))
        rows = min(len(ids), int(np.searchsorted(ends, max_tokens)) + 1)
        self.ids = ids[:rows]
        self.token_ids = self.ids[ordinary[:rows]].astype(np.uint32)
        self.row_starts = np.concatenate([[0], ends[:rows]]).astype(np.int64)
        self.num_tokens = len(self.token_ids)
        self._rows_done = 0
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dtype = torch.float32 if model.dtype == torch.float32 else torch.bfloat16
        self._values: list[Tensor] = []
        for number, hook in enumerate(model.hooks):
            file, size = folder / f"hook_{number}", self.num_tokens * hook.d_in
            with room_needed(file):
                _reserve(file, size * dtype.itemsize)
            values = torch.from_file(str(file), shared=True, size=size, dtype=dtype)
            self._values.append(values.view(self.num_tokens, hook.d_in))

    def first(
        self, hook: int, num_tokens: int, check_stop: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "n d_in"]:
        wanted = rows_for(self, num_tokens)
        per_call = max(1, TOKENS_PER_FORWARD // self.ids.shape[1])
        while self._rows_done < wanted:
            # Always whole calls, so that values do not depend on what was asked for before.
            end = min(self._rows_done + per_call, len(self.ids))
            ids = torch.from_numpy(self.ids[self._rows_done : end])
            place = slice(self.row_starts[self._rows_done], self.row_starts[end])
            for target, values in zip(
                self._values, extract(self._model, ids, check_stop), strict=True
            ):
                target[place] = values.to(target)
            self._rows_done = end
        return self._values[hook][: self.row_starts[wanted]]

    def close(self) -> None:
        """Remove the files; the memory is given back when the last view of it goes."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _reserve(file: Path, num_bytes: int) -> None:
    """Take the room of a file that will be written through memory, where a full disk would be a
    fatal signal instead of an error. Does nothing on systems that cannot.
    """
    with file.open("wb") as made:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(made.fileno(), 0, num_bytes)
