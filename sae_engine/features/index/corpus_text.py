"""The text of an index corpus, and where a string occurs in it, however it is split into tokens.

Derived from an index's token ids and vocabulary; searched by `lookup` and `expressions`. A position
stands for the bytes of its token. Text is continuous only where nothing was left out: a match
never crosses the start of a row, a break, or a special token, which has no text.
"""

from __future__ import annotations

import math
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
WIDTHS = (4, 2, 1)
"""Numbers of bytes that are compared as one integer."""
CASE_BIT = 0x20
"""The only difference of an upper and a lower ASCII letter."""
NUM_CASED = 0x20000
"""All characters with upper and lower case are below it."""
NO_UTF8, ALSO_NO_UTF8 = b"\xff", b"\xfe"
"""Two bytes that no string contains in UTF-8. Text has only the second, so the first is a mark."""

Unit = list[bytes]
"""The spellings that one place of a string can have."""
Spans = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Offsets of the starts and the ends of matches."""


class Hits(NamedTuple):
    """Where a text occurs in the corpus."""

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
        counts = np.zeros(256, np.int64)
        for first in range(0, len(data), SCAN_BYTES):
            counts += np.bincount(self._bytes[first : first + SCAN_BYTES], minlength=256)
        self._shares = counts / max(1, len(data))
        """[256] share of each byte in the text."""
        self._occurs: dict[bytes, bool] = {}
        """Whether characters that were looked for occur in the text."""

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
        ends = np.sort(self._ends_of(text, exact_case=exact_case))
        positions = self.last_positions(ends)
        return Hits(positions[np.diff(positions, prepend=-1) != 0], len(ends))

    def count(self, text: str, *, exact_case: bool) -> int:
        """The number of occurrences alone, which takes less time."""
        return len(self._ends_of(text, exact_case=exact_case))

    def last_positions(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of the byte before each of the given offsets."""
        last_bytes = (ends - 1).astype(self._ends.dtype)
        return np.searchsorted(self._ends, last_bytes, side="right")

    def _ends_of(self, text: str, *, exact_case: bool) -> NDArray[np.int64]:
        """Offset of the end of every occurrence, in any order."""
        units: list[Unit] = []
        for character in text:
            unit = _utf8(character) if exact_case else self._spellings(character)
            units += [[bytes([byte])] for byte in unit[0]] if len(unit) == 1 else [unit]
        starts, ends = self._anywhere(units)
        if len(units) == 1 and _is_narrow(units[0]):
            return ends
        return ends[ends <= self.bounds[np.searchsorted(self.bounds, starts, side="right")]]

    def _spellings(self, character: str) -> Unit:
        """The UTF-8 of characters in the text that differ from one at most in case."""
        found: Unit = []
        for spelling in _same_but_for_case().get(character.casefold(), ()):
            if spelling not in self._occurs:
                self._occurs[spelling] = spelling in self.data
            found += [spelling] if self._occurs[spelling] else []
        return found or _utf8(character)

    def _anywhere(self, units: Sequence[Unit]) -> Spans:
        """Starts and ends of all sequences of one spelling of each unit, across bounds too.

        The rarest few units are searched for first; then their neighbors are compared.
        """
        first, width = self._rarest(units)
        starts, ends = self._places(units[first : first + width])
        for unit in units[first + width :]:
            following = [(s, self._is_at(ends, s)) for s in unit]
            starts, ends = _joined([(starts[at], ends[at] + len(s)) for s, at in following])
        for unit in reversed(units[:first]):
            preceding = [(s, self._is_at(starts - len(s), s)) for s in unit]
            starts, ends = _joined([(starts[at] - len(s), ends[at]) for s, at in preceding])
        return starts, ends

    def _rarest(self, units: Sequence[Unit]) -> tuple[int, int]:
        """Place and number of the units that are likely to be found least often."""
        shares = [sum(float(self._shares[list(s)].min()) for s in unit) for unit in units]
        narrow = [_is_narrow(unit) for unit in units]
        for width in WIDTHS:
            windows = [n for n in range(len(units) - width + 1) if all(narrow[n : n + width])]
            if windows:
                return min(windows, key=lambda n: math.prod(shares[n : n + width])), width
        return int(np.argmin(shares)), 1

    def _places(self, units: Sequence[Unit]) -> Spans:
        """Starts and ends of narrow units, or of one unit of any kind."""
        if all(map(_is_narrow, units)):
            at = self._scan(units)
            return at, at + len(units)
        found: list[Spans] = []
        for spelling in units[0]:
            at = self._scan([[spelling[:1]]])
            at = at[self._is_at(at, spelling)]
            found.append((at, at + len(spelling)))
        return _joined(found)

    def _scan(self, units: Sequence[Unit]) -> NDArray[np.int64]:
        """Offsets of narrow units, compared at once as an integer of so many bytes."""
        width = len(units)
        kind = np.dtype(f"<u{width}")
        cases = bytes(CASE_BIT if len(unit) > 1 else 0 for unit in units)
        wanted = bytes(unit[0][0] | case for unit, case in zip(units, cases, strict=True))
        case_bits, value = np.frombuffer(cases, kind)[0], np.frombuffer(wanted, kind)[0]
        found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for first in range(0, len(self._bytes), SCAN_BYTES):
            part = self._bytes[first : first + SCAN_BYTES + width - 1]
            for shift in range(width):
                after = len(part) - (len(part) - shift) % width
                integers = part[shift:after].copy().view(kind)
                at = np.flatnonzero((integers | case_bits) == value)
                found.append(first + shift + width * at)
        return np.concatenate(found)

    def _is_at(self, places: NDArray[np.int64], wanted: bytes) -> NDArray[np.bool_]:
        """Whether some bytes stand at each of the offsets, which may lie outside the text."""
        left = np.flatnonzero((places >= 0) & (places + len(wanted) <= len(self._bytes)))
        for offset, byte in enumerate(wanted):
            left = left[self._bytes[places[left] + offset] == byte]
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


def _joined(parts: Sequence[Spans]) -> Spans:
    starts, ends = zip(*parts, strict=True)
    return np.concatenate(starts), np.concatenate(ends)


def _utf8(text: str) -> Unit:
    return [text.encode("utf-8", "surrogatepass")]


def _is_narrow(unit: Unit) -> bool:
    """Whether all spellings are the same byte, except for the bit of case."""
    return all(len(s) == 1 and s[0] | CASE_BIT == unit[0][0] | CASE_BIT for s in unit)


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
