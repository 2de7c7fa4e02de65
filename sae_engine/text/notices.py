"""What the user should know about a text: rows left out, guessed encodings, how it is divided.

Filled by the text sources while they read; reported by `preflight` and `training`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping

LOGGED = 3

_log = logging.getLogger(__name__)


class TextNotices:
    """Sentences about a text, each row counted once however often the text is read."""

    def __init__(self) -> None:
        self._notes: dict[str, dict[str, str]] = {}
        """Sentences by what they are about and by file."""
        self._skipped: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._furthest: dict[Hashable, int] = {}
        """Number of the last row counted, by column. Every pass reads the rows in order."""

    def note(self, subject: str, file: str, sentence: str) -> None:
        """Add a sentence about a file; only the first on each subject is reported."""
        notes = self._notes.setdefault(subject, {})
        if notes.get(file) != sentence:
            notes[file] = sentence
            if len(notes) <= LOGGED:
                _log.info("%s", sentence)

    def skip(self, column: Hashable, row: int, where: str, reason: str) -> None:
        """Count row number `row` of a column of some text as left out."""
        if row <= self._furthest.get(column, -1):
            return
        self._furthest[column] = row
        self._skipped[reason] += 1
        self._first.setdefault(reason, where)
        if self._skipped[reason] <= LOGGED:
            _log.warning("left out %s: %s", where, reason)

    @property
    def sentences(self) -> list[str]:
        """All that is known so far; a count that has grown makes a new sentence."""
        skipped = [
            f"{count:,} {'row was' if count == 1 else 'rows were'} left out ({reason}); the first "
            f"is {self._first[reason]}."
            for reason, count in self._skipped.items()
        ]
        return [*map(_summary, self._notes.values()), *skipped]


def _summary(notes: Mapping[str, str]) -> str:
    first, *others = notes.values()
    if not others:
        return first
    files = "file" if len(others) == 1 else "files"
    return f"{first} The same is true of {len(others):,} more {files}."
