"""Text as packed rows of token ids, with a cursor from which the same rows can be read again.

Fed by `text_sources`; read by `activations` and `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.schema.config import DataConfig
from sae_engine.text.sources import Document, documents
from sae_engine.text.stdlib import Split

DOCUMENTS_PER_CALL = 64
"""Documents tokenized in one call, in parallel."""


class Cursor(NamedTuple):
    """Where a row begins: tokens of document number `document` (or a later one) from `offset`
    on.
    """

    epoch: int = 0
    document: int = 0
    offset: int = 0


BEGINNING = Cursor()


class Packing(NamedTuple):
    """How documents become rows: ids of BOS (None: rows have none) and eos (None: documents are
    just joined).
    """

    tokenizer: Tokenizer
    ctx_len: int
    bos_id: int | None
    eos_id: int | None

    @property
    def tokens_per_row(self) -> int:
        """Tokens of text in a row, its BOS not counted."""
        return self.ctx_len - (self.bos_id is not None)


class PackedRows:
    """Rows of exactly `ctx_len` ids: one BOS, then documents joined by one eos, never padded.

    An iterator that starts again from the first document when the text ends, `num_epochs` times or,
    when that is None, for ever. `cursor` is where the next row begins.
    """

    def __init__(
        self,
        packing: Packing,
        read: Callable[[int], Iterator[Document]],
        *,
        cursor: Cursor = BEGINNING,
        num_epochs: int | None = None,
    ) -> None:
        self.packing = packing
        self.cursor = cursor
        self._read = read
        self._num_epochs = num_epochs
        self._tokens = self._tokenized(cursor)
        self._document: tuple[Cursor, np.ndarray] | None = None

    def __iter__(self) -> PackedRows:
        return self

    def __next__(self) -> Int[np.ndarray, " ctx"]:
        wanted = self.packing.tokens_per_row
        parts: list[np.ndarray] = []
        while wanted:
            if self._document is None:
                self._document = next(self._tokens)
            at, ids = self._document
            taken = ids[at.offset : at.offset + wanted]
            parts.append(taken)
            wanted -= len(taken)
            end = at._replace(offset=at.offset + len(taken))
            self._document = (end, ids) if end.offset < len(ids) else None
            self.cursor = end if self._document else Cursor(at.epoch, at.document + 1, 0)
        bos = [] if self.packing.bos_id is None else [np.array([self.packing.bos_id], np.int64)]
        return np.concatenate(bos + parts)

    def take(self, count: int) -> Int[np.ndarray, "count ctx"]:
        """The next `count` rows, fewer when the text ends."""
        rows = [row for _, row in zip(range(count), self, strict=False)]
        return np.stack(rows) if rows else np.empty((0, self.packing.ctx_len), np.int64)

    def _tokenized(self, cursor: Cursor) -> Iterator[tuple[Cursor, np.ndarray]]:
        epoch, start, offset = cursor
        eos = [] if self.packing.eos_id is None else [self.packing.eos_id]
        while self._num_epochs is None or epoch < self._num_epochs:
            read_any = False
            for group in _grouped(self._read(start)):
                encoded = self.packing.tokenizer.encode_batch_fast(
                    [d.text for d in group], add_special_tokens=False
                )
                for document, encoding in zip(group, encoded, strict=True):
                    ids = np.array([*encoding.ids, *eos], np.int64)
                    first = offset if document.number == start else 0
                    read_any = True
                    if first < len(ids):
                        yield Cursor(epoch, document.number, first), ids
            if not read_any and start == 0 and self._num_epochs is None:
                raise UserError(
                    "The dataset holds no training text; check data.dataset and data.text_column."
                )
            epoch, start, offset = epoch + 1, 0, 0


def training_rows(
    config: DataConfig,
    packing: Packing,
    *,
    cursor: Cursor = BEGINNING,
    num_epochs: int | None = None,
) -> PackedRows:
    """The rows a run trains on, from `cursor` on."""
    return _rows(config, packing, "train", cursor, num_epochs)


def heldout_rows(
    config: DataConfig, packing: Packing, num_tokens: int
) -> Int[np.ndarray, "rows ctx"]:
    """Rows of held-out text with at least `num_tokens` tokens, or all that the dataset has.

    Raises `UserError` if it has less than one row.
    """
    count = -(-num_tokens // packing.tokens_per_row)
    rows = _rows(config, packing, "heldout", BEGINNING, 1).take(count)
    if not len(rows):
        raise UserError(
            f"'{config.dataset}' is too small: a tenth of its documents, chosen by a hash of "
            f"their text, is held "
            f"out of training, and that fills no row of {packing.ctx_len} tokens. Use more text "
            f"or a smaller "
            "data.ctx_len."
        )
    return rows


def count_tokens(config: DataConfig, packing: Packing) -> int:
    """Tokens that one pass over the training text gives, eos not counted."""
    rows = _rows(config, packing, "train", BEGINNING, 1)
    return sum(int((row != packing.eos_id).sum()) - (packing.bos_id is not None) for row in rows)


def _rows(
    config: DataConfig, packing: Packing, split: Split, cursor: Cursor, num_epochs: int | None
) -> PackedRows:
    return PackedRows(
        packing, lambda start: documents(config, split, start), cursor=cursor, num_epochs=num_epochs
    )


def _grouped(source: Iterator[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    for document in source:
        group.append(document)
        if len(group) == DOCUMENTS_PER_CALL:
            yield group
            group = []
    if group:
        yield group
