"""Held-out activations, which are never trained on.

Fed by the language model and held-out text; read by `training` for evaluation and feature indexes.
"""

from __future__ import annotations

import os
import shutil
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
    def num_context(self) -> int:
        """Tokens of `ids` that are only context."""
        ...

    def read(
        self, hook: int, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Float[Tensor, "n d_in"]:
        """Activations of the first rows that hold at least `num_tokens` tokens."""
        ...

    def close(self) -> None: ...


def num_rows_holding(num_tokens: int, row_starts: Int[np.ndarray, " rows_plus_1"]) -> int:
    """Number of the first rows that hold at least `num_tokens` tokens; all if they hold fewer."""
    ends = row_starts[1:]
    return min(len(ends), int(np.searchsorted(ends, num_tokens)) + 1)


class HeldoutText:
    """Activations of held-out text, computed when they are first read and kept in files.

    See `Heldout` for the attributes. One file per hook, in `folder`.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Int[np.ndarray, "rows ctx"],
        max_tokens: int,
        folder: Path,
    ) -> None:
        """`rows` may contain context."""
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

    def read(
        self, hook: int, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Float[Tensor, "n d_in"]:
        num_rows = num_rows_holding(num_tokens, self.row_starts)
        per_call = max(1, TOKENS_PER_FORWARD // self.ids.shape[1])
        while self._rows_done < num_rows:
            # Always whole calls, so that values do not depend on what was read before.
            end = min(self._rows_done + per_call, len(self.ids))
            part = slice(self._rows_done, end)
            ids, at = torch.from_numpy(self.ids[part]), torch.from_numpy(self.at[part])
            place = slice(self.row_starts[self._rows_done], self.row_starts[end])
            for target, values in zip(
                self._values, extract(self._model, ids, check_stop, at=at), strict=True
            ):
                target[place] = values.to(target)
            self._rows_done = end
        return self._values[hook][: self.row_starts[num_rows]]

    def close(self) -> None:
        """Remove the files; their memory is freed with the last view of it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _reserve(file: Path, num_bytes: int) -> None:
    """Allocate a file that will be written through memory, where a full disk would kill the process
    instead of raising. Does nothing on systems without `posix_fallocate`.
    """
    with file.open("wb") as made:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(made.fileno(), 0, num_bytes)
