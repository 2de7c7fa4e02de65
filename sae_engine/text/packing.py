"""Text as packed rows of token ids, with a cursor from which the same rows can be read again.

Fed by `sources`; read by `activations`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.interrupt import CheckStop, interruptible, never_stop
from sae_engine.schema.config import DataConfig
from sae_engine.text.chat import ChatTemplate
from sae_engine.text.context import read_rows
from sae_engine.text.documents import Document, Split
from sae_engine.text.notices import TextNotices
from sae_engine.text.pieces import Piece, pieces_of
from sae_engine.text.sources import documents

PIECES_PER_CALL = 64
CHARS_PER_CALL = 2**20
"""Documents, or pieces of long ones, are tokenized in parallel, at most this many and about this
much text at a time.
"""
FIRST_CHARS = 2**14
"""The first call gets about this much text, and each further call twice as much, because some
readers want only a few rows.
"""


class Cursor(NamedTuple):
    """Where a row begins: at token `offset` of document number `document`, or at the start of the
    next document that exists.
    """

    epoch: int = 0
    document: int = 0
    offset: int = 0


BEGINNING = Cursor()


class Packing(NamedTuple):
    """How documents become rows, and where to report problems with them."""

    tokenizer: Tokenizer
    ctx_len: int
    bos_id: int | None
    """Begins each row; None begins rows with text."""
    eos_id: int | None
    """Ends each document; None joins documents directly."""
    notices: TextNotices | None = None
    chat: ChatTemplate | None = None
    """How conversations become ids."""

    @property
    def tokens_per_row(self) -> int:
        """Tokens of text in a row, without BOS."""
        return self.ctx_len - (self.bos_id is not None)

    def rows_holding(self, num_tokens: int) -> int:
        return -(-num_tokens // self.tokens_per_row)


class Tokens(NamedTuple):
    """Token ids of a document, or of a part of it."""

    at: Cursor
    """Position of the first."""
    ids: np.ndarray
    """Context is marked as in `context`."""
    is_last: bool
    """Whether the document ends with them."""


class PackedRows:
    """Rows of exactly `ctx_len` ids: one BOS, then documents joined by one eos, never padded; of
    conversations, the ids that `packing.chat` gives, context marked as in `context`.

    An iterator that restarts at the first document when the text ends, for `num_epochs` epochs or
    without end. `cursor` is where the next row begins. Documents are read and tokenized in a
    background thread, so `check_stop` is called however long the source blocks; when it raises,
    open a new `PackedRows` at a known cursor to continue.
    """

    def __init__(
        self,
        packing: Packing,
        read: Callable[[int], Iterator[Document]],
        *,
        cursor: Cursor = BEGINNING,
        num_epochs: int | None = None,
        check_stop: CheckStop = never_stop,
    ) -> None:
        """`read(n)` yields the documents whose number is at least `n`."""
        self.packing = packing
        self.cursor = cursor
        self.epoch = cursor.epoch
        """The epoch in which the row read last begins."""
        tokenized = _tokenized(packing, read, cursor, num_epochs)
        self._documents = interruptible(tokenized, check_stop)
        self._current: Tokens | None = None
        """What is left of the document being cut into rows."""

    def __iter__(self) -> PackedRows:
        return self

    def __next__(self) -> Int[np.ndarray, " ctx"]:
        wanted = self.packing.tokens_per_row
        parts: list[np.ndarray] = []
        while wanted:
            at, ids, is_last = self._current or next(self._documents)
            self.epoch = self.epoch if parts else at.epoch
            taken, rest = ids[:wanted], ids[wanted:]
            parts.append(taken)
            wanted -= len(taken)
            end = at._replace(offset=at.offset + len(taken))
            self._current = Tokens(end, rest, is_last) if len(rest) else None
            is_over = is_last and not len(rest)
            self.cursor = Cursor(at.epoch, at.document + 1, 0) if is_over else end
        bos = [] if self.packing.bos_id is None else [np.array([self.packing.bos_id], np.int64)]
        return np.concatenate(bos + parts)

    def take(self, count: int) -> Int[np.ndarray, "count ctx"]:
        """The next `count` rows, fewer when the text ends."""
        rows = list(islice(self, count))
        return np.stack(rows) if rows else np.empty((0, self.packing.ctx_len), np.int64)


def training_rows(
    config: DataConfig,
    packing: Packing,
    *,
    cursor: Cursor = BEGINNING,
    num_epochs: int | None = None,
    check_stop: CheckStop = never_stop,
) -> PackedRows:
    """The rows that a run trains on, beginning at `cursor`."""
    return _rows(config, packing, "train", cursor, num_epochs, check_stop)


def each_heldout_row(
    config: DataConfig, packing: Packing, check_stop: CheckStop = never_stop
) -> Iterator[Int[np.ndarray, " ctx"]]:
    """All rows of held-out text; raises `UserError` if there is none."""
    rows = _rows(config, packing, "heldout", BEGINNING, 1, check_stop)
    first = next(rows, None)
    if first is None:
        raise UserError(
            f"'{config.dataset}' is too small: a tenth of its documents, chosen by a hash of their "
            f"text, is held out of training, and that fills no row of {packing.ctx_len} tokens. "
            "Use more text or a smaller data.ctx_len."
        )
    yield first
    yield from rows


def count_tokens(
    config: DataConfig,
    packing: Packing,
    excluded_ids: Collection[int],
    check_stop: CheckStop = never_stop,
) -> int:
    """Tokens in one epoch of the training text; context and `excluded_ids` are not counted."""
    rows = _rows(config, packing, "train", BEGINNING, 1, check_stop)
    return sum(num_counted(row, excluded_ids) for row in rows)


def num_counted(row: Int[np.ndarray, " ctx"], excluded_ids: Collection[int]) -> int:
    """Tokens of a row that are neither context nor in `excluded_ids`."""
    return int((read_rows(row).counted & ~np.isin(row, list(excluded_ids))).sum())


def _rows(
    config: DataConfig,
    packing: Packing,
    split: Split,
    cursor: Cursor,
    num_epochs: int | None,
    check_stop: CheckStop,
) -> PackedRows:
    if config.messages_column is None:
        packing = packing._replace(chat=None)

    def read(start: int) -> Iterator[Document]:
        return documents(config, split, start, packing.notices, packing.chat)

    return PackedRows(packing, read, cursor=cursor, num_epochs=num_epochs, check_stop=check_stop)


def _tokenized(
    packing: Packing,
    read: Callable[[int], Iterator[Document]],
    cursor: Cursor,
    num_epochs: int | None,
) -> Iterator[Tokens]:
    """The tokens from `cursor` on, each document's in one part or, if it is long, in several."""
    epoch, start, offset = cursor
    while num_epochs is None or epoch < num_epochs:
        any_counted = False
        first = Cursor(epoch, start, offset)
        for tokens in _encoded(packing, read(start), epoch):
            any_counted |= bool((tokens.ids >= 0).any())
            if tokens := _from(first, tokens):
                yield tokens
        if not any_counted and start == 0 and num_epochs is None:
            raise UserError(
                "The dataset holds no training text; check data.dataset and data.text_column."
                if packing.chat is None
                else "The dataset holds no conversations to train on; check data.dataset, "
                "data.messages_column and data.train_roles."
            )
        epoch, start, offset = epoch + 1, 0, 0


def _from(first: Cursor, tokens: Tokens) -> Tokens | None:
    """The part of `tokens` from `first` on, None if there is none."""
    at, ids, is_last = tokens
    before = max(0, first.offset - at.offset) if at.document == first.document else 0
    if before >= len(ids):
        return None
    return Tokens(at._replace(offset=at.offset + before), ids[before:], is_last)


def _encoded(packing: Packing, source: Iterator[Document], epoch: int) -> Iterator[Tokens]:
    """The tokens of all documents, each part with its position."""
    ids_of = _text_ids if packing.chat is None else _conversation_ids
    pieces = pieces_of if packing.chat is None else _whole
    offset = 0
    for group in _groups(piece for document in source for piece in pieces(document)):
        for piece, ids in zip(group, ids_of(packing, group), strict=True):
            yield Tokens(Cursor(epoch, piece.document, offset), ids, piece.is_last)
            offset = 0 if piece.is_last else offset + len(ids)


def _text_ids(packing: Packing, group: Sequence[Piece]) -> Iterator[np.ndarray]:
    eos = [] if packing.eos_id is None else [packing.eos_id]
    encoded = packing.tokenizer.encode_batch_fast(
        [piece.text for piece in group], add_special_tokens=False
    )
    for piece, encoding in zip(group, encoded, strict=True):
        yield np.array([*encoding.ids, *(eos if piece.is_last else [])], np.int64)


def _conversation_ids(packing: Packing, group: Sequence[Piece]) -> Sequence[np.ndarray]:
    assert packing.chat is not None
    return packing.chat.encode([piece.text for piece in group])


def _whole(document: Document) -> Iterator[Piece]:
    yield Piece(document.number, document.text, True)


def _groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces for one call of the tokenizer each."""
    group: list[Piece] = []
    length, enough = 0, FIRST_CHARS
    for piece in pieces:
        group.append(piece)
        length += len(piece.text)
        if len(group) == PIECES_PER_CALL or length >= enough:
            yield group
            group, length, enough = [], 0, min(2 * enough, CHARS_PER_CALL)
    if group:
        yield group
