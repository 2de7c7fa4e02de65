"""The text of an index corpus, and where a string stands in it, whatever the tokens.

Derived from an index's token ids and vocabulary; searched by `lookup` and `expressions`. A position
stands for the bytes of its token. Text is continuous only where nothing was left out: a match
never crosses the start of a row, a break, or a special token, which has no text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.associations import concatenated_ranges
from sae_engine.features.index.format import IndexArrays

CHUNK_TOKENS = 2**18
SCAN_BYTES = 2**18
"""Bytes compared at once, few enough for the processor's cache."""
NUM_CASED = 0x20000
"""All characters with upper and lower case are below it."""
NO_UTF8, ALSO_NO_UTF8 = b"\xff", b"\xfe"
"""Two bytes that no string contains in UTF-8. Text has only the second, so the first is a mark."""


class Hits(NamedTuple):
    """Where a text stands in the corpus."""

    positions: NDArray[np.int64]
    """Distinct positions of the last token of each occurrence, ascending."""
    occurrences: int
    """At least as many as positions; more if several end in one token."""


class CorpusText:
    """The UTF-8 bytes of all positions, in order."""

    def __init__(self, data: bytes, ends: NDArray[Any], bounds: NDArray[np.int64]) -> None:
        self.data = data
        self.bounds = bounds
        """[S + 1] offsets at which continuous text starts, and the number of bytes."""
        self._ends = ends.astype(np.uint32) if len(data) < 2**32 else ends
        """[N] offset at which the bytes of each position end."""
        self._bytes = np.frombuffer(data, np.uint8)
        self._frequencies = np.zeros(256, np.int64)
        for part in _parts(self._bytes):
            self._frequencies += np.bincount(part, minlength=256)

    @classmethod
    def of(cls, arrays: IndexArrays, special_ids: Collection[int]) -> Self:
        """Decode a corpus: about 4 bytes per token, plus 4 for its offset."""
        lengths = np.diff(arrays.vocabulary_offsets)
        lengths[[i for i in special_ids if i < len(lengths)]] = 0
        position_lengths = lengths[arrays.token_ids]
        ends = np.cumsum(position_lengths)
        without_text = np.flatnonzero(position_lengths == 0)
        firsts = [arrays.row_starts, without_text]
        if arrays.text_breaks is not None:
            firsts.append(arrays.text_breaks)
        bounds = np.unique(np.append(ends, 0)[np.concatenate(firsts) - 1])
        return cls(_decoded(arrays, lengths), ends, bounds)

    def literal(self, text: str, *, exact_case: bool) -> Hits:
        """Every occurrence of a string, overlapping ones too.

        Unless `exact_case`, characters that `str.casefold` makes equal are equal.
        """
        units = [_utf8(text)] if exact_case else [_spellings(character) for character in text]
        starts, ends = self._anywhere(units)
        inside = ends <= self.bounds[np.searchsorted(self.bounds, starts, side="right")]
        return Hits(self.last_positions(ends[inside]), int(inside.sum()))

    def last_positions(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Distinct positions of the bytes before the given offsets."""
        last_bytes = (ends - 1).astype(self._ends.dtype)
        return np.unique(np.searchsorted(self._ends, last_bytes, side="right"))

    def _anywhere(
        self, units: Sequence[Sequence[bytes]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts and ends of all sequences of one spelling of each unit, across bounds too.

        The rarest unit is searched for first; then each of its neighbors is compared.
        """
        rarest = min(range(len(units)), key=lambda n: self._most(units[n]))
        parts = [(at := self._places(spelling), at + len(spelling)) for spelling in units[rarest]]
        starts, ends = _joined(parts)
        for unit in units[rarest + 1 :]:
            following = [(s, self._is_at(ends, s)) for s in unit]
            starts, ends = _joined([(starts[at], ends[at] + len(s)) for s, at in following])
        for unit in reversed(units[:rarest]):
            preceding = [(s, self._is_at(starts - len(s), s)) for s in unit]
            starts, ends = _joined([(starts[at] - len(s), ends[at]) for s, at in preceding])
        return starts, ends

    def _most(self, spellings: Sequence[bytes]) -> int:
        """The most occurrences that one of the spellings can have."""
        return sum(int(self._frequencies[list(spelling)].min()) for spelling in spellings)

    def _places(self, wanted: bytes) -> NDArray[np.int64]:
        """Offsets at which some bytes stand."""
        rarest = int(np.argmin(self._frequencies[list(wanted)]))
        found = [np.flatnonzero(part == wanted[rarest]) for part in _parts(self._bytes)]
        shifted = [at + n * SCAN_BYTES - rarest for n, at in enumerate(found)]
        places = np.concatenate(shifted) if shifted else np.empty(0, np.int64)
        return places[self._is_at(places, wanted)]

    def _is_at(self, places: NDArray[np.int64], wanted: bytes) -> NDArray[np.bool_]:
        """Whether some bytes stand at each of the offsets, which may lie outside the text."""
        fits = (places >= 0) & (places + len(wanted) <= len(self._bytes))
        left = np.flatnonzero(fits)
        for offset in np.argsort(self._frequencies[list(wanted)]).tolist():
            left = left[self._bytes[places[left] + offset] == wanted[offset]]
        found = np.zeros(len(places), np.bool_)
        found[left] = True
        return found


def _decoded(arrays: IndexArrays, lengths: NDArray[np.int64]) -> bytes:
    """The bytes of all positions whose token has a length."""
    vocabulary = np.array(arrays.vocabulary_bytes)
    parts: list[bytes] = []
    for first in range(0, arrays.num_tokens, CHUNK_TOKENS):
        ids = arrays.token_ids[first : first + CHUNK_TOKENS]
        places = concatenated_ranges(arrays.vocabulary_offsets, ids[lengths[ids] > 0])
        parts.append(vocabulary[places].tobytes())
    return b"".join(parts).replace(NO_UTF8, ALSO_NO_UTF8)


def _parts(values: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [values[first : first + SCAN_BYTES] for first in range(0, len(values), SCAN_BYTES)]


def _joined(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts, ends = zip(*parts, strict=True)
    return np.concatenate(starts), np.concatenate(ends)


def _utf8(text: str) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass")]


def _spellings(character: str) -> list[bytes]:
    """The UTF-8 of all characters that differ from one only in case, including itself."""
    return _same_but_for_case().get(character.casefold()) or _utf8(character)


@cache
def _same_but_for_case() -> dict[str, list[bytes]]:
    """Groups of characters by their common case folding."""
    groups: dict[str, list[bytes]] = {}
    for number in range(NUM_CASED):
        folded = chr(number).casefold()
        if folded != chr(number):
            groups.setdefault(folded, []).append(chr(number).encode())
    for folded, group in groups.items():
        if len(folded) == 1:
            group.append(folded.encode())
    return groups
