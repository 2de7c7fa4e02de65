"""Regular expressions in the text of an index corpus, in time linear in the text.

Called by `lookup`. RE2, which pyarrow includes, never backtracks, so no expression takes
exponential time; one with very many states still is slow, so the search has a time limit.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.features.index.corpus_text import NO_UTF8, CorpusText, Hits

LIMIT_SECONDS = 5.0
"""Processor time that a search may take, which does not depend on what else the machine does."""
LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES = 2**12, 2**21
"""Text searched between two looks at the clock; it grows while a block takes little time."""
QUICK_SECONDS = 0.05
SYNTAX = "https://github.com/google/re2/wiki/Syntax"


def find_expression(
    text: CorpusText, pattern: str, *, exact_case: bool, limit_seconds: float = LIMIT_SECONDS
) -> Hits:
    """The matches of a regular expression, leftmost first, without overlaps and empty matches.

    `^` and `$` also match at the ends of lines. Raises `UserError` for a pattern that is not an
    expression, and if the search takes longer than the limit.
    """
    search = _Search(text, pattern, exact_case=exact_case)
    deadline = time.thread_time() + limit_seconds
    found: list[NDArray[np.int64]] = []
    occurrences, first, block_bytes = 0, 0, LEAST_BLOCK_BYTES
    while first < len(text.bounds) - 1:
        began = time.thread_time()
        if began > deadline:
            raise UserError(
                f"The expression {pattern[:100]!r} takes longer than {limit_seconds:g} s on this "
                "index; simplify it, for example with smaller repetitions."
            )
        reach = text.bounds[first] + block_bytes
        after = max(first + 1, int(np.searchsorted(text.bounds, reach, side="right")) - 1)
        ends = search.ends(first, after)
        positions = text.last_positions(ends)
        found.append(positions[np.diff(positions, prepend=-1) > 0])
        occurrences += len(ends)
        quick = time.thread_time() - began < QUICK_SECONDS
        block_bytes = block_bytes * 2 if quick else block_bytes // 2
        block_bytes = min(max(block_bytes, LEAST_BLOCK_BYTES), MOST_BLOCK_BYTES)
        first = after
    # No token is part of two blocks.
    return Hits(np.concatenate([np.empty(0, np.int64), *found]), occurrences)


class _Search:
    """One expression on one text."""

    def __init__(self, text: CorpusText, pattern: str, *, exact_case: bool) -> None:
        import pyarrow as pa  # not for lookups of tokens, which need not wait for it

        self._text = text
        self._flags = "(?m)" if exact_case else "(?im)"
        self._pattern = self._flags + pattern
        self._data = pa.py_buffer(text.data)
        try:
            self._marked(pa.array([""], pa.large_string()))
        except (pa.ArrowInvalid, UnicodeEncodeError) as error:
            reason = str(error).replace(self._flags, "").partition("expression: ")[2]
            raise UserError(
                f"{pattern[:100]!r} is not a valid RE2 expression ({reason or error}); see "
                f"{SYNTAX}."
            ) from error

    def ends(self, first: int, after: int) -> NDArray[np.int64]:
        """Offsets at which matches end in a range of continuous texts."""
        import pyarrow as pa

        bounds = self._text.bounds[first : after + 1]
        buffers = [None, pa.py_buffer(np.ascontiguousarray(bounds)), self._data]
        texts = pa.Array.from_buffers(pa.large_string(), after - first, buffers)
        marks = np.flatnonzero(self._marked(texts) == NO_UTF8[0])
        # Before the n-th match, n pairs of marks have been inserted.
        inserted = np.arange(len(marks))
        starts, ends = (marks - inserted).reshape(-1, 2).T
        return bounds[0] + ends[ends > starts]

    def _marked(self, texts: object) -> NDArray[np.uint8]:
        """The texts in one piece, with a mark at the start and the end of each match."""
        import pyarrow.compute as pc

        marks = NO_UTF8 + rb"\0" + NO_UTF8
        options = pc.ReplaceSubstringOptions(self._pattern, marks)
        marked = pc.call_function("replace_substring_regex", [texts], options)
        data = marked.buffers()[2]
        return np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
