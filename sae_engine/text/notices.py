"""What the user should know about a text: rows left out, guessed encodings, how it is divided.

Filled by the text sources while they read; told by `preflight` and by `training`.
"""

from __future__ import annotations

import logging
from collections import Counter

LOGGED_PER_REASON = 3

_log = logging.getLogger(__name__)


class TextNotices:
    """Sentences about a text, each row counted once however often the text is read."""

    def __init__(self) -> None:
        self._notes: dict[str, None] = {}
        self._skipped: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._furthest: dict[str, int] = {}
        """Number of the last row counted, by file. Every pass reads the rows in order."""

    def note(self, sentence: str) -> None:
        """Add a sentence, unless it is there already."""
        if sentence not in self._notes:
            self._notes[sentence] = None
            _log.info("%s", sentence)

    def skip(self, file: str, row: int, where: str, reason: str) -> None:
        """Count row number `row` of a file as left out."""
        if row <= self._furthest.get(file, -1):
            return
        self._furthest[file] = row
        self._skipped[reason] += 1
        self._first.setdefault(reason, where)
        if self._skipped[reason] <= LOGGED_PER_REASON:
            _log.warning("left out %s: %s", where, reason)

    @property
    def sentences(self) -> list[str]:
        """All that is known so far; a count that has grown makes a new sentence."""
        skipped = [
            f"{count:,} {'row was' if count == 1 else 'rows were'} left out ({reason}); the first "
            f"is {self._first[reason]}."
            for reason, count in self._skipped.items()
        ]
        return [*self._notes, *skipped]
