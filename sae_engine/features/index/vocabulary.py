"""Token ids to bytes to text, for byte-level and byte-fallback tokenizers.

A character may be split over several tokens. It is then shown at the token that completes it, and
the tokens before it are shown as "", so that every token keeps its position and its activation.
Bytes that are not UTF-8 are shown as `<0xE2>`; U+FFFD appears only where the text contains it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MAX_CHARACTER_BYTES = 4
INVALID_BYTES = "hex_pieces"
"""Name of the codecs error handler that shows bytes that are not UTF-8 as `<0xE2>`."""


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """Bytes of the text of each id below `vocab_size`; b"" for ids without a token.

    The text of a special token is its name.
    """
    to_bytes = _piece_decoder(tokenizer)
    pieces = [b""] * vocab_size
    for token, id_ in tokenizer.get_vocab(with_added_tokens=True).items():
        if id_ < vocab_size:
            pieces[id_] = to_bytes(token)
    for id_, added in tokenizer.get_added_tokens_decoder().items():
        # Gemma has runs of "▁" as added tokens that are not special; they are text to decode.
        if id_ < vocab_size and (added.special or "▁" not in added.content):
            pieces[id_] = added.content.encode()
    return pieces


def _piece_decoder(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    state: dict[str, Any] = (
        json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    )
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    if any(step.get("type") == "ByteLevel" for step in steps):
        return _from_byte_level
    replacements = [
        (s["pattern"]["String"], s["content"]) for s in steps if s.get("type") == "Replace"
    ]
    replacements += [(s["replacement"], " ") for s in steps if s.get("type") == "Metaspace"]
    byte_pieces = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}
    has_byte_fallback = any(step.get("type") == "ByteFallback" for step in steps)

    def decode(token: str) -> bytes:
        if has_byte_fallback and token in byte_pieces:
            return byte_pieces[token]
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return decode


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, U+0100 and on for the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _from_byte_level(token: str) -> bytes:
    alphabet = _byte_of_character()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _hex_of_invalid_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{b:02X}>" for b in error.object[error.start : error.end]), error.end


codecs.register_error(INVALID_BYTES, _hex_of_invalid_bytes)


def shown_tokens(pieces: Iterable[bytes]) -> list[str]:
    """Text of consecutive tokens, one string per piece, as the module docstring describes."""
    shown: list[str] = []
    pending = b""
    for piece in pieces:
        pending += piece
        text, consumed = codecs.utf_8_decode(pending, INVALID_BYTES, False)
        pending = pending[consumed:]
        shown.append(text)
    if pending:
        shown[-1] += pending.decode("utf-8", INVALID_BYTES)
    return shown


class Vocabulary:
    """The bytes and the text of every token id."""

    def __init__(self, offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        self._offsets = np.array(offsets)  # not a memory map: this may outlive the index's files
        self._data = data.tobytes()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def piece(self, id_: int) -> bytes:
        return self._data[self._offsets[id_] : self._offsets[id_ + 1]]

    def text(self, id_: int) -> str:
        """Text of one token by itself: `<0xE2>` for part of a character, `[7]` for no token."""
        return shown_tokens([self.piece(id_)])[0] or f"[{id_}]"

    def window(self, ids: Sequence[int] | NDArray[np.uint32]) -> list[str]:
        """Text of consecutive tokens, one string per id."""
        return shown_tokens(self.piece(int(i)) for i in ids)

    @cached_property
    def texts(self) -> list[str]:
        """Text of every id by itself; "" for ids without a token."""
        bounds = self._offsets.tolist()
        pieces = (self._data[a:b] for a, b in pairwise(bounds))
        return [piece.decode("utf-8", INVALID_BYTES) for piece in pieces]

    @cached_property
    def bare_texts(self) -> list[str]:
        """Texts without leading space: `cat` and ` cat` are equal."""
        return [text.removeprefix(" ") for text in self.texts]

    @cached_property
    def casefolded(self) -> list[str]:
        return [text.casefold() for text in self.texts]

    @cached_property
    def folded(self) -> list[str]:
        """Texts without case and leading space: `cat`, ` cat` and ` Cat` are equal."""
        return [text.removeprefix(" ") for text in self.casefolded]
