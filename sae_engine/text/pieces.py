"""Long documents in pieces, so that tokenizing one takes bounded memory.

Tokenizers hold some hundred bytes per character while they work, and some need more than linear
time. A piece ends before the newline that follows a word: tokenizers that split text before merging
(GPT-2, Llama 3, Qwen and others) never merge across that place, so the pieces' tokens are the
document's. Others may differ in a token at a cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sae_engine.text.documents import Document

MAX_PIECE_CHARS = 2**20
"""Shorter documents are tokenized whole."""


class Piece(NamedTuple):
    document: int
    """Number of the document."""
    text: str
    is_last: bool


def pieces_of(document: Document) -> Iterator[Piece]:
    """A document in pieces of at most `MAX_PIECE_CHARS` characters, which make up its text."""
    text, start = document.text, 0
    while len(text) - start > MAX_PIECE_CHARS:
        end = _cut(text, start + MAX_PIECE_CHARS // 2, start + MAX_PIECE_CHARS)
        yield Piece(document.number, text[start:end], False)
        start = end
    yield Piece(document.number, text[start:], True)


def _cut(text: str, first: int, last: int) -> int:
    """The last good place to cut between two positions."""
    end = last
    while (end := text.rfind("\n", first, end)) > first:
        if text[end - 1].isalnum():
            return end
    newline, space = text.rfind("\n", first, last), text.rfind(" ", first, last)
    return newline if newline > first else space if space > first else last
