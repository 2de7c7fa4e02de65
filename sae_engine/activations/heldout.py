"""Held-out activations, which are never trained on.

Fed by the language model and held-out text; read by `training` for evaluation and feature indexes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_engine.activations.stream import extract
from sae_engine.files import room_needed
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import LanguageModel
from sae_engine.sizes import TOKENS_PER_FORWARD
from sae_engine.text.context import read_rows


class Heldout(Protocol):
    """Held-out activations in reading order, in whole rows of text."""

    @property
    def ids(self) -> Int[np.ndarray, "rows ctx"] | None:
        """The rows that they come from, if known."""
        ...

    @property
    def at(self) -> Bool[np.ndarray, "rows ctx"] | None:
        """Where in `ids` they are, if known."""
        ...

    @property
    def token_ids(self) -> Int[np.ndarray, " N"] | None:
        """The token at each activation, if known."""
        ...

    @property
    def row_starts(self) -> Int[np.ndarray, " rows_plus_1"]:
        """The index of each row's first activation, and the number of all activations."""
        ...

    @property
    def text_breaks(self) -> Int[np.ndarray, " breaks"] | None:
        """The index of each activation before which tokens of the text were left out, if known."""
        ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_stored(self) -> int:
        """The first tokens, whose activations can be read again without the language model."""
        ...

    @property
    def num_context(self) -> int:
        """Tokens of `ids` that are only context."""
        ...

    def read(
        self, hook: int, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Float[Tensor, "n d_in"]:
        """Activations of the first rows that hold at least `num_tokens` tokens, all stored."""
        ...

    def parts(
        self, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Iterator[list[Float[Tensor, "n d_in"]]]:
        """Activations at every hook of the first rows that hold at least `num_tokens` tokens,
        stored or not, about as many at a time as the language model reads in one call.
        """
        ...

    def close(self) -> None: ...


def num_rows_holding(num_tokens: int, row_starts: Int[np.ndarray, " rows_plus_1"]) -> int:
    """Number of the first rows that hold at least `num_tokens` tokens; all if they hold fewer."""
    ends = row_starts[1:]
    return min(len(ends), int(np.searchsorted(ends, num_tokens)) + 1)


class HeldoutText:
    """Activations of held-out text, computed when they are read. Those of the first tokens are then
    stored in files, one per hook, in `folder`; the others are computed again by each reading.

    See `Heldout` for the attributes.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Int[np.ndarray, "rows ctx"],
        max_tokens: int,
        folder: Path,
        num_stored: int | None = None,
    ) -> None:
        """`rows` may contain context. At least `num_stored` tokens are stored, by default all."""
        self._model = model
        ids, counted = read_rows(rows)
        at = counted & ~np.isin(ids, model.excluded_ids)
        row_starts = np.concatenate([[0], np.cumsum(at.sum(axis=1))]).astype(np.int64)
        num_rows = num_rows_holding(max_tokens, row_starts)
        self.ids, self.at = ids[:num_rows], at[:num_rows]
        self.num_context = int((~counted[:num_rows]).sum())
        self.token_ids = self.ids[self.at].astype(np.uint32)
        self.row_starts = row_starts[: num_rows + 1]
        self.text_breaks = 1 + np.flatnonzero(np.diff(np.flatnonzero(self.at)) > 1)
        self.num_tokens = len(self.token_ids)
        # Always whole calls, so that values do not depend on what was read before.
        self._rows_per_call = max(1, TOKENS_PER_FORWARD // ids.shape[1])
        stored = num_rows_holding(max_tokens if num_stored is None else num_stored, self.row_starts)
        self._rows_stored = min(num_rows, _round_up(stored, self._rows_per_call))
        self.num_stored = int(self.row_starts[self._rows_stored])
        self._rows_done = 0
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._values: list[Tensor] = []
        for number, hook in enumerate(model.hooks):
            file, size = folder / f"hook_{number}", self.num_stored * hook.d_in
            with room_needed(file):
                _reserve(file, size * hook.dtype.itemsize)
            values = torch.from_file(str(file), shared=True, size=size, dtype=hook.dtype)
            self._values.append(values.view(self.num_stored, hook.d_in))

    def read(
        self, hook: int, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Float[Tensor, "n d_in"]:
        num_rows = num_rows_holding(num_tokens, self.row_starts)
        assert num_rows <= self._rows_stored
        while self._rows_done < num_rows:
            self._store(check_stop)
        return self._values[hook][: self.row_starts[num_rows]]

    def parts(
        self, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Iterator[list[Float[Tensor, "n d_in"]]]:
        num_rows = num_rows_holding(num_tokens, self.row_starts)
        for first in range(0, num_rows, self._rows_per_call):
            place = self._place(first, num_rows)
            if first >= self._rows_stored:
                values = self._compute(first, check_stop)
                yield [hook[: place.stop - place.start] for hook in values]
                continue
            if first >= self._rows_done:
                self._store(check_stop)
            yield [hook[place] for hook in self._values]

    def _store(self, check_stop: CheckStop) -> None:
        """Store the next call's activations."""
        first = self._rows_done
        place = self._place(first, self._rows_stored)
        for target, values in zip(self._values, self._compute(first, check_stop), strict=True):
            target[place] = values
        self._rows_done = min(first + self._rows_per_call, self._rows_stored)

    def _place(self, first: int, num_rows: int) -> slice:
        """Where the activations of the call from row `first` on are, up to row `num_rows`."""
        end = min(first + self._rows_per_call, num_rows)
        return slice(int(self.row_starts[first]), int(self.row_starts[end]))

    def _compute(self, first: int, check_stop: CheckStop) -> list[Float[Tensor, "n d_in"]]:
        """The activations of the call from row `first` on at every hook."""
        part = slice(first, first + self._rows_per_call)
        ids, at = torch.from_numpy(self.ids[part]), torch.from_numpy(self.at[part])
        return [values.cpu() for values in extract(self._model, ids, check_stop, at=at)]

    def close(self) -> None:
        """Remove the files; their memory is freed with the last view of it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _reserve(file: Path, num_bytes: int) -> None:
    """Allocate a file before it is written through memory, where a full disk would kill the process
    instead of raising an error. Does nothing on systems without `posix_fallocate`.
    """
    with file.open("wb") as made:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(made.fileno(), 0, num_bytes)
