"""Sorts entries by latent, however many there are, in parts of the latents that fit into memory.

Entries are dealt to the parts once, on disk, and then each part is sorted. Used by `invert`; the
kernels are in `kernels.grouping`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.interrupt import CheckStop
from sae_engine.kernels import grouping
from sae_engine.kernels.compiled import in_parallel, num_threads

Keys = NDArray[np.uint64]


class Dealt(NamedTuple):
    """The keys of some entries: those of part p are keys[bounds[p]:bounds[p + 1]]."""

    keys: Keys
    bounds: NDArray[np.int64]


class Parts(NamedTuple):
    """Consecutive ranges of latents, and how the keys of their entries are composed."""

    of: NDArray[np.uint32]
    """[d_sae] the part of each latent."""
    first: NDArray[np.int64]
    """[parts] the first latent of each part."""
    rank_bits: int
    value_bits: int

    def dealt(self, num_entries: int) -> Dealt:
        """Space for the keys of as many entries."""
        return Dealt(np.empty(num_entries, np.uint64), np.empty(len(self.first) + 1, np.int64))


Deal = Callable[[Parts], Iterator[Dealt]]
"""Yields the keys of all entries, in order of their values, some at a time."""


def bits_below(count: int) -> int:
    """Bits that hold every number below `count`."""
    return max(1, (count - 1).bit_length())


def grouped(
    folder: Path,
    starts: NDArray[np.int64],
    deal: Deal,
    bits: tuple[int, int],
    check_stop: CheckStop,
    max_entries: int,
) -> Iterator[Keys]:
    """All keys, grouped by latent and sorted by rank within a latent, at most `max_entries` at a
    time, or those of one latent.

    `starts` [d_sae + 1] are the bounds of each latent; `bits` are those of a rank and of a value,
    and the rest of 64 number the latents of a part. Takes 8 bytes of disk per entry in `folder`
    meanwhile.
    """
    max_groups = 2 ** (64 - sum(bits))
    in_memory = [
        cut(starts, low, high, num_threads())
        for low, high in ranges(starts, max_entries, max_groups=max_groups)
    ]
    edges = np.array([edge for cuts in in_memory for edge in cuts])
    numbers = np.arange(len(edges), dtype=np.uint32)
    parts = Parts(np.repeat(numbers, np.diff(edges)[:, 0]), edges[:, 0].copy(), *bits)
    with TemporaryFile(dir=folder) as file:
        _write_parts(file, starts[parts.first], deal(parts))
        for cuts in in_memory:
            check_stop()
            yield _sorted(file, starts, cuts, parts)


def _write_parts(file: IO[bytes], places: NDArray[np.int64], dealt: Iterator[Dealt]) -> None:
    """Write the keys of each part to `file`, from its place in `places` on, which advances."""
    for keys, bounds in dealt:
        for part in np.flatnonzero(np.diff(bounds)):
            some = keys[bounds[part] : bounds[part + 1]]
            file.seek(int(places[part]) * keys.itemsize)
            file.write(some.data)
            places[part] += len(some)
    file.flush()


def _sorted(
    file: IO[bytes], starts: NDArray[np.int64], cuts: list[tuple[int, int]], parts: Parts
) -> Keys:
    """The keys of a range of latents, read from `file`, grouped and sorted."""
    low, high = cuts[0][0], cuts[-1][1]
    file.seek(int(starts[low]) * np.dtype(np.uint64).itemsize)
    keys = np.fromfile(file, np.uint64, int(starts[high] - starts[low]))
    grouped = np.empty_like(keys)

    def part(number: int, _thread: int) -> None:
        first, last = cuts[number]
        here = slice(starts[first] - starts[low], starts[last] - starts[low])
        bounds = starts[first : last + 1] - starts[first]
        free = bounds[:-1].copy()
        grouping.group_keys(keys[here], parts.rank_bits, parts.value_bits, free, grouped[here])
        # A part's keys are not needed once they are grouped, so their space serves as scratch.
        grouping.sort_groups(grouped[here], bounds, parts.rank_bits, keys[here])

    in_parallel(part, len(cuts))
    return grouped


def cut(starts: NDArray[np.int64], low: int, high: int, parts: int) -> list[tuple[int, int]]:
    """Cut the groups `low` to `high` into at most `parts` parts of similar numbers of entries."""
    wanted = starts[low] + np.arange(1, parts) * (starts[high] - starts[low]) // parts
    inner = np.clip(np.searchsorted(starts, wanted), low, high)
    edges = [low, *inner.tolist(), high]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def ranges(
    starts: NDArray[np.int64], max_entries: int, low: int = 0, *, max_groups: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cut the groups from `low` on into consecutive ranges of at most `max_entries` entries, or of
    one larger group, and of at most `max_groups` groups.
    """
    num_groups = len(starts) - 1
    while low < num_groups:
        high = int(np.searchsorted(starts, starts[low] + max_entries, side="right")) - 1
        high = min(max(high, low + 1), num_groups, low + (max_groups or num_groups))
        yield low, high
        low = high
