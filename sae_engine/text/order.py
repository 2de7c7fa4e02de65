"""The order in which a run reads rows of text: datasets mixed by weight, rows shuffled in pools.

Fed by `packing`; read by `activations`. Far more text fits into memory as token ids than as
activations, so most of the shuffling happens here.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from sae_engine.errors import UserError
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.progress import Part
from sae_engine.schema.config import DataConfig
from sae_engine.sizes import TOKENS_PER_BLOCK
from sae_engine.text.packing import (
    Cursor,
    PackedRows,
    Packing,
    each_heldout_row,
    num_counted,
    training_rows,
)


class RowCursor(NamedTuple):
    """Where the next row is: row `given` of the pool that begins at `starts`."""

    starts: tuple[Cursor, ...]
    """Position in each dataset."""
    counts: tuple[int, ...]
    """Rows read from each dataset before `starts`."""
    given: int = 0
    """Always 0 without pools."""
    ends_at_any_epoch: bool = False
    """Whether the pool ends with the first row after which any dataset begins again: one that an
    earlier version of this program began.
    """


class Rows(Protocol):
    """Rows of `packing.ctx_len` ids in a fixed order, without end."""

    packing: Packing

    @property
    def cursor(self) -> RowCursor: ...

    def take(self, count: int) -> Int[np.ndarray, "count ctx"]: ...


def shuffled_rows(
    config: DataConfig,
    packing: Packing,
    cursor: Cursor | RowCursor,
    *,
    pool_rows: int,
    check_stop: CheckStop = never_stop,
) -> Rows:
    """The rows that a run trains on, from `cursor` on, shuffled in pools of `pool_rows`.

    A `Cursor` means that position in every dataset.
    """
    configs = config.datasets
    if isinstance(cursor, Cursor):
        cursor = RowCursor((cursor,) * len(configs), (0,) * len(configs))
    datasets = [
        training_rows(one, packing, cursor=start, check_stop=check_stop)
        for one, start in zip(configs, cursor.starts, strict=True)
    ]
    rows = MixedRows(datasets, config.weights, cursor.counts)
    if pool_rows <= 1:
        return rows
    start = rows.cursor._replace(ends_at_any_epoch=cursor.ends_at_any_epoch)
    return ShuffledRows(rows, start, pool_rows=pool_rows, seed=config.seed, given=cursor.given)


def read_mixed_heldout(
    config: DataConfig,
    packing: Packing,
    num_tokens: int,
    excluded_ids: Collection[int],
    check_stop: CheckStop = never_stop,
) -> Generator[Part, None, Int[np.ndarray, "rows ctx"]]:
    """Rows of held-out text with at least `num_tokens` tokens, without context and `excluded_ids`,
    or all there are. More tokens only add rows at the end.

    They are mixed as the training rows are, until a dataset has no more. Raises `UserError` if one
    has less than a row, and if rows for `num_tokens` tokens hold none that counts.
    """
    datasets = [each_heldout_row(one, packing, check_stop) for one in config.datasets]
    counts = [0] * len(datasets)
    left = list(range(len(datasets)))
    rows: list[np.ndarray] = []
    num_found = num_reported = 0
    while left and num_found < num_tokens:
        number = furthest_behind(counts, config.weights, left)
        row = next(datasets[number], None)
        if row is None:
            left.remove(number)
            continue
        rows.append(row)
        counts[number] += 1
        num_found += num_counted(row, excluded_ids)
        if num_found // TOKENS_PER_BLOCK > num_reported // TOKENS_PER_BLOCK:
            num_reported = min(num_found, num_tokens)
            yield Part(num_reported, num_tokens, "tokens")
        if not num_found and len(rows) >= packing.rows_holding(num_tokens):
            break
    if not num_found:
        raise _nothing_counts(config)
    return np.stack(rows)


def _nothing_counts(config: DataConfig) -> UserError:
    if not config.train_roles:
        return UserError(f"The held-out text of '{config.title}' holds only special tokens.")
    return UserError(
        f"No held-out message is of {' or '.join(config.train_roles)}; name roles of "
        f"'{config.title}' in data.train_roles."
    )


class MixedRows:
    """Rows of several datasets, each row from one of them.

    The next row comes from the dataset that is furthest behind its weight. All rows hold the same
    number of tokens, so weights are shares of tokens.
    """

    def __init__(
        self, datasets: Sequence[PackedRows], weights: Sequence[float], counts: Sequence[int]
    ) -> None:
        """`counts` are the rows that have been read from each dataset."""
        self.packing = datasets[0].packing
        self._datasets = datasets
        self._weights = weights
        self._counts = list(counts)

    @property
    def cursor(self) -> RowCursor:
        return RowCursor(tuple(rows.cursor for rows in self._datasets), tuple(self._counts))

    @property
    def epoch(self) -> int:
        """The epoch in which the row read last begins; always 0 in a mixture, whose datasets begin
        again at different rows.
        """
        return self._datasets[0].epoch if len(self._datasets) == 1 else 0

    def __next__(self) -> Int[np.ndarray, " ctx"]:
        number = furthest_behind(self._counts, self._weights, range(len(self._datasets)))
        row = next(self._datasets[number])
        self._counts[number] += 1
        return row

    def take(self, count: int) -> Int[np.ndarray, "count ctx"]:
        return np.stack([next(self) for _ in range(count)])


def furthest_behind(counts: Sequence[int], weights: Sequence[float], among: Iterable[int]) -> int:
    """The dataset that the next row comes from (D'Hondt's method)."""
    return min(among, key=lambda number: (counts[number] + 1) / weights[number])


class ShuffledRows:
    """Rows in pools of `pool_rows`, each pool shuffled by itself.

    Unless datasets are mixed, a pool ends early with the last row that begins in its epoch, so that
    each epoch reads every row once. The order is a pure function of (rows, `seed`, position). To
    continue from a cursor, one pool of text is read again.
    """

    def __init__(
        self, rows: MixedRows, start: RowCursor, *, pool_rows: int, seed: int, given: int = 0
    ) -> None:
        """`rows` are at `start`, where a pool begins; `given` of the pool's rows are skipped."""
        self.packing = rows.packing
        self._rows = rows
        self._pool_rows = pool_rows
        self._seed = seed
        self._start = self._end = start
        self._held: Int[np.ndarray, " ctx"] | None = None
        """The first row of the next pool, if reading this one went so far."""
        self._given = given
        self._pool: Int[np.ndarray, "rows ctx"] | None = None

    @property
    def cursor(self) -> RowCursor:
        return self._start._replace(given=self._given)

    def take(self, count: int) -> Int[np.ndarray, "count ctx"]:
        parts: list[np.ndarray] = []
        while count:
            if self._pool is None:
                self._pool = self._next_pool()
            part = self._pool[self._given : self._given + count].copy()  # frees the pool
            parts.append(part)
            count -= len(part)
            self._given += len(part)
            if self._given == len(self._pool):
                self._start, self._given, self._pool = self._end, 0, None
        return np.concatenate(parts)

    def _next_pool(self) -> Int[np.ndarray, "rows ctx"]:
        """Read the pool that begins at `_start`, and set its end."""
        rows = self._rows_of_pool()
        seed = np.random.SeedSequence((self._seed, sum(self._start.counts), 2))
        order = np.argsort(seed.generate_state(len(rows), np.uint64), kind="stable")
        return np.stack([rows[number] for number in order])

    def _rows_of_pool(self) -> list[Int[np.ndarray, " ctx"]]:
        """The pool's rows in reading order."""
        rows = [next(self._rows) if self._held is None else self._held]
        self._held, epoch = None, self._rows.epoch
        while True:
            self._end = self._rows.cursor
            if len(rows) == self._pool_rows or self._ends_before_its_size():
                return rows
            row = next(self._rows)
            if self._rows.epoch != epoch and not self._start.ends_at_any_epoch:
                self._held = row
                return rows
            rows.append(row)

    def _ends_before_its_size(self) -> bool:
        return self._start.ends_at_any_epoch and any(
            now.epoch > first.epoch
            for now, first in zip(self._end.starts, self._start.starts, strict=True)
        )
