"""Outliers: the few tokens, such as attention sinks, whose activations are many times as large as
the others'. They would decide every mean and every sum of squares, so they are left out.

`training` measures the median norm once, at the start of a run, and passes the limit that follows
from it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from sae_engine.activations.heldout import Heldout, num_rows_holding
from sae_engine.errors import UserError
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.sae.inference import Rows
from sae_engine.schema.config import DEFAULT_NORM_MULTIPLE
from sae_engine.sizes import TOKENS_PER_BLOCK


class SelectedRows:
    """Some rows of a tensor, which may be memory-mapped; each slice is copied when it is read."""

    def __init__(self, values: Float[Tensor, "n d_in"], places: Int[Tensor, " m"]) -> None:
        self._values = values
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, part: slice, /) -> Tensor:
        return self._values[self._places[part]]


def median_norm(x: Float[Tensor, "n d_in"]) -> float:
    """The median of the rows' norms."""
    return _norms(x).median().item()


def largest_norm(median: float, multiple: float | None) -> float:
    """The norm above which a row is an outlier; infinite if `multiple` is unset, or if most rows
    are zero.
    """
    return multiple * median if multiple is not None and median > 0 else math.inf


def is_outlier(x: Float[Tensor, "n d_in"], limit: float) -> Bool[Tensor, " n"]:
    """Which rows have a norm above `limit`. Rows with NaN are kept, so that the loss shows them."""
    return _norms(x) > limit


class OutlierFilter:
    """Leaves outliers out of a run's training: rows with a norm above `limit`, which is `multiple`
    times the median norm of the first activations.
    """

    def __init__(self, multiple: float | None) -> None:
        self.multiple = multiple
        self.median_norm = math.nan
        self._num_tokens: int | Tensor = 0

    @property
    def limit(self) -> float:
        return largest_norm(self.median_norm, self.multiple)

    @property
    def num_tokens(self) -> int:
        """Training tokens left out so far, counted on the device."""
        return int(self._num_tokens)

    def begin_(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "m d_in"]:
        """Measure the median norm of the first activations; return those that input scale, loss
        variance and initial bias are measured on.

        Without a `multiple`, they are those within the default one: a single row of 1,000 times the
        median norm would otherwise scale all others down to nothing.
        """
        self.median_norm = median_norm(x)
        limit = largest_norm(self.median_norm, self.multiple or DEFAULT_NORM_MULTIPLE)
        return x[~is_outlier(x, limit)]

    def restore_(self, median_norm: float, num_tokens: int) -> None:
        """Continue from what a checkpoint holds."""
        self.median_norm, self._num_tokens = median_norm, num_tokens

    def __call__(self, batch: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """The batch with its outliers replaced; they are counted."""
        if math.isinf(self.limit):
            return batch
        outlier = is_outlier(batch, self.limit)
        self._num_tokens = self._num_tokens + outlier.sum()
        return replace_outliers(batch, outlier)


def replace_outliers(
    x: Float[Tensor, "n d_in"], outlier: Bool[Tensor, " n"]
) -> Float[Tensor, "n d_in"]:
    """A batch of the same size in which the nearest ordinary row before each outlier replaces it,
    cyclically. Never waits for the device.
    """
    number = torch.arange(len(x), device=x.device)
    nearest = torch.where(outlier, -1, number).cummax(0).values
    return x[torch.where(nearest < 0, nearest[-1], nearest)]


class OrdinaryTokens(NamedTuple):
    """The held-out tokens of the first rows of text, without outliers, in reading order."""

    activations: Rows
    kept: Bool[np.ndarray, " all"]
    """Which of the held-out tokens these are."""

    @property
    def num_outliers(self) -> int:
        return len(self.kept) - len(self.activations)


def ordinary_tokens(
    heldout: Heldout,
    hook: int,
    num_tokens: int,
    limit: float,
    check_stop: CheckStop = never_stop,
) -> OrdinaryTokens:
    """The first rows that hold at least `num_tokens` tokens, without those whose norm at `hook` is
    above `limit`. Raises `UserError` if none is left.
    """
    values = heldout.read(hook, num_tokens, check_stop)
    kept = np.ones(len(values), np.bool_)
    for first in range(0, len(values), TOKENS_PER_BLOCK):
        check_stop()
        part = slice(first, first + TOKENS_PER_BLOCK)
        kept[part] = is_ordinary(values[part], limit)
    if kept.all():
        return OrdinaryTokens(values, kept)
    _require_some(kept, limit)
    places = torch.from_numpy(np.flatnonzero(kept)).to(values.device)
    return OrdinaryTokens(SelectedRows(values, places), kept)


class OrdinaryText(NamedTuple):
    """The text of some held-out tokens, without outliers, in reading order."""

    token_ids: Int[np.ndarray, " n"]
    row_starts: Int[np.ndarray, " rows_plus_1"]
    """The index of each row's first token among them, and their number; a row may be empty."""
    text_breaks: Int[np.ndarray, " breaks"] | None
    """The index of each token before which others were left out, if known."""


def ordinary_text(
    heldout: Heldout, num_tokens: int, kept: Bool[np.ndarray, " all"], limit: float
) -> OrdinaryText:
    """The text of the first rows that hold at least `num_tokens` tokens, of which those in `kept`
    have a norm up to `limit`. Raises `UserError` if none has.
    """
    assert heldout.token_ids is not None
    ids = heldout.token_ids[: len(kept)]
    starts = heldout.row_starts[: num_rows_holding(num_tokens, heldout.row_starts) + 1]
    assert starts[-1] == len(kept)
    breaks = heldout.text_breaks
    breaks = None if breaks is None else breaks[breaks < len(kept)]
    if kept.all():
        return OrdinaryText(ids, starts, breaks)
    _require_some(kept, limit)
    before = np.concatenate([[0], np.cumsum(kept)])
    return OrdinaryText(ids[kept], before[starts], _breaks_without_outliers(breaks, kept))


def is_ordinary(x: Float[Tensor, "n d_in"], limit: float) -> Bool[np.ndarray, " n"]:
    """Which rows are not outliers."""
    if math.isinf(limit):
        return np.ones(len(x), np.bool_)
    return ~is_outlier(x, limit).cpu().numpy()


def _require_some(kept: Bool[np.ndarray, " all"], limit: float) -> None:
    if not kept.any():
        raise UserError(
            f"Every held-out activation has a norm above {limit:.3g}, data.max_norm_multiple times "
            "the median of the training activations; use training and held-out activations of the "
            "same model and site."
        )


def _breaks_without_outliers(
    breaks: Int[np.ndarray, " breaks"] | None, kept: Bool[np.ndarray, " all"]
) -> Int[np.ndarray, " breaks_of_kept"]:
    """The breaks of the text of the tokens that are kept; each removed token adds a break."""
    is_break = np.concatenate([[False], ~kept])[:-1]
    if breaks is not None:
        is_break[breaks] = True
    before = np.cumsum(is_break)[kept]
    return np.flatnonzero(np.diff(before, prepend=0))


def _norms(x: Float[Tensor, "n d_in"]) -> Float[Tensor, " n"]:
    return vector_norm(x, dim=1, dtype=torch.float32)
