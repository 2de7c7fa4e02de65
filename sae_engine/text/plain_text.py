"""Files of plain text divided into documents: paragraphs, lines, or the whole file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from sae_engine.schema.config import Division
from sae_engine.text.decoding import open_text, read_sample, readable, require_encoding
from sae_engine.text.notices import TextNotices

MAX_DOCUMENT_CHARS = 2**24
"""Longer paragraphs, lines and files are cut into documents of this length, so that memory is
bounded. Paragraphs and files are cut at the end of a line where there is one.
"""
LINES_PER_BLANK_LINE = 200
"""Text with fewer blank lines than one in this many lines is divided into lines."""


class TextFile(NamedTuple):
    """A file's encoding and how it is divided."""

    path: Path
    encoding: str
    division: Division

    def documents(self) -> Iterator[str]:
        """Raises `ConfigError` for a file that is cut off."""
        with readable(self.path), open_text(self.path, self.encoding) as text:
            if self.division == "lines":
                yield from (line.removesuffix("\n") for line in pieces_of_lines(text))
            else:
                yield from _joined(
                    pieces_of_lines(text), ends_at_blank=self.division == "paragraphs"
                )


def open_text_file(path: Path, division: Division | None, notices: TextNotices) -> TextFile:
    """Detect a file's encoding and, unless given, its division; raises `ConfigError`."""
    sample = read_sample(path)
    encoding = require_encoding(path, sample, notices)
    found = division or division_of(sample.decode(encoding, "replace"))
    if found == "lines" and division is None:
        notices.note(
            "lines",
            str(path),
            f"Each line of '{path}' is a document, because it has no blank lines between "
            "paragraphs; data.documents = paragraphs or file reads it otherwise.",
        )
    return TextFile(path, encoding, found)


def division_of(text: str) -> Division:
    """How text that begins like this is divided: at blank lines, or, where there are none or almost
    none, into lines.
    """
    lines = text.strip().splitlines()
    blank = sum(not line.strip() for line in lines)
    has_lines = len(lines) > 1 and blank * LINES_PER_BLANK_LINE < len(lines)
    return "lines" if has_lines else "paragraphs"


def pieces_of_lines(text: TextIO) -> Iterator[str]:
    """Lines with their ends; a line that is too long for a document comes in several pieces."""
    return iter(lambda: text.readline(MAX_DOCUMENT_CHARS), "")


def _joined(lines: Iterator[str], *, ends_at_blank: bool) -> Iterator[str]:
    """Lines joined to documents, which end at blank lines or only at the maximum length."""
    document: list[str] = []
    length = 0
    for line in lines:
        is_end = ends_at_blank and not line.strip()
        if document and (is_end or length + len(line) > MAX_DOCUMENT_CHARS):
            yield "".join(document)
            document, length = [], 0
        if not is_end:
            document.append(line)
            length += len(line)
    if document:
        yield "".join(document)
