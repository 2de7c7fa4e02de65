"""Packed rows against a plain concatenation of the same documents."""

from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from sae_engine.errors import UserError
from sae_engine.preflight import embedded_model_folder
from sae_engine.schema.config import DataConfig
from sae_engine.text import pieces
from sae_engine.text.documents import Document
from sae_engine.text.packing import (
    FIRST_CHARS,
    PIECES_PER_CALL,
    Cursor,
    PackedRows,
    Packing,
    count_tokens,
    training_rows,
)
from sae_engine.text.pieces import pieces_of
from tests.sae_engine.test_interrupt import Background
from tests.sae_engine.text.heldout_text import heldout_rows

BOS, EOS = 2, 1
TOKENIZER = Tokenizer.from_file(str(embedded_model_folder() / "tokenizer.json"))
TOKENIZER.encode_special_tokens = True

texts = st.lists(st.text(min_size=1, max_size=60).filter(str.strip), min_size=1, max_size=12)


def rows_of(
    documents: list[str],
    ctx_len: int,
    cursor: Cursor = Cursor(),  # noqa: B008
    epochs: int | None = 1,
    tokenizer=TOKENIZER,
):
    packing = Packing(tokenizer, ctx_len, BOS, EOS)

    def read(start: int):
        return (Document(n, t) for n, t in enumerate(documents) if n >= start)

    return PackedRows(packing, read, cursor=cursor, num_epochs=epochs)


def joined(documents: list[str]) -> list[int]:
    return [i for d in documents for i in [*TOKENIZER.encode(d, add_special_tokens=False).ids, EOS]]


@given(texts, st.integers(8, 20))
def test_rows_are_one_bos_and_the_documents_joined_by_one_eos(documents: list[str], ctx_len: int):
    rows = list(rows_of(documents, ctx_len))
    expected = joined(documents)
    body = [int(i) for row in rows for i in row[1:]]
    assert body == expected[: len(body)]
    assert len(expected) - len(body) < ctx_len - 1
    for row in rows:
        assert len(row) == ctx_len
        assert row[0] == BOS
        assert BOS not in row[1:]
        assert 0 not in row


@given(texts, st.integers(8, 20), st.integers(0, 30))
def test_from_any_cursor_the_same_rows_follow(documents: list[str], ctx_len: int, count: int):
    rows = rows_of(documents, ctx_len, epochs=None)
    rows.take(count)
    cursor = rows.cursor
    expected = rows.take(5)
    again = rows_of(documents, ctx_len, cursor, epochs=None)
    assert np.array_equal(again.take(5), expected)


def test_little_text_is_tokenized_for_a_row_and_little_more_often_than_needed_for_all():
    calls: list[int] = []

    class Counting:
        def encode_batch_fast(self, texts: list[str], **more):
            calls.append(sum(map(len, texts)))
            return TOKENIZER.encode_batch_fast(texts, **more)

    document = "some words " * 100
    rows = rows_of([document] * 400, 50, tokenizer=Counting())
    next(rows)
    assert FIRST_CHARS <= calls[0] < FIRST_CHARS + len(document)
    assert len(calls) == 1
    list(rows)
    full = PIECES_PER_CALL * len(document)
    for before, size in pairwise(calls[:-1]):
        assert size == full or 2 * before - len(document) < size < 2 * before + len(document)
    assert calls[-2] == full


def test_abandoned_rows_leave_no_thread():
    background = Background()
    rows = rows_of(["some words here", "and more"], 8, epochs=None)
    rows.take(2)
    assert len(background.threads()) == 1
    del rows
    background.wait_until_none_is_left()


def test_the_text_restarts_when_it_ends():
    rows = rows_of(["some words here", "and more"], 8, epochs=None)
    once = joined(["some words here", "and more"])
    body = rows.take(9)[:, 1:].flatten().tolist()
    assert body == (once * 20)[: len(body)]


def test_a_literal_bos_in_a_document_stays_text():
    rows = list(rows_of(["<bos> begins <eos> and <pad> pads " * 5], 16))
    for row in rows:
        assert BOS not in row[1:]
        assert EOS not in row
        assert 0 not in row


def test_held_out_and_training_text_share_no_document(tmp_path: Path):
    lines = [f"document number {n} says {n * n}" for n in range(400)]
    lines += lines[:50]  # duplicates must be in the same split
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(lines))
    config = DataConfig(dataset=str(path), ctx_len=16)
    packing = Packing(TOKENIZER, 16, None, EOS)

    def documents(rows: np.ndarray) -> set[tuple[int, ...]]:
        ids = rows.flatten().tolist()
        ends = [n for n, i in enumerate(ids) if i == EOS]
        return {tuple(ids[a + 1 : b]) for a, b in zip([-1, *ends], ends, strict=False)}

    held = documents(heldout_rows(config, packing, 10**6))
    trained = documents(np.stack(list(training_rows(config, packing, num_epochs=1))))
    assert 20 < len(held) < 70
    assert not held & trained
    assert len(held) + len(trained) >= 398


def test_num_samples_limits_the_documents(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"document {n} has some words in it" for n in range(300)))
    packing = Packing(TOKENIZER, 16, BOS, EOS)
    whole = count_tokens(DataConfig(dataset=str(path), ctx_len=16), packing, [BOS, EOS])
    half = count_tokens(
        DataConfig(dataset=str(path), ctx_len=16, num_samples=150), packing, [BOS, EOS]
    )
    assert 0.4 < half / whole < 0.6


@pytest.mark.parametrize(
    ("bos", "eos", "pad"),
    [(BOS, EOS, 0), (EOS, EOS, EOS), (None, EOS, None), (BOS, None, None), (None, None, " has")],
)
def test_an_epoch_has_as_many_tokens_as_its_rows_have_ordinary_ones(
    tmp_path: Path, bos: int | None, eos: int | None, pad: int | str | None
):
    """Also where the special tokens coincide, or where one of them occurs in the text."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"document {n} has some words in it" for n in range(200)))
    if isinstance(pad, str):
        [pad] = TOKENIZER.encode(pad, add_special_tokens=False).ids
    config, packing = DataConfig(dataset=str(path), ctx_len=16), Packing(TOKENIZER, 16, bos, eos)
    excluded = {i for i in (bos, eos, pad) if i is not None}
    rows = list(training_rows(config, packing, num_epochs=1))
    ordinary = sum(1 for row in rows for i in row.tolist() if i not in excluded)
    assert count_tokens(config, packing, excluded) == ordinary


def test_a_dataset_without_enough_held_out_text_is_refused(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("only one document")
    packing = Packing(TOKENIZER, 64, BOS, EOS)
    with pytest.raises(UserError, match=r"is too small: .* Use more text"):
        heldout_rows(DataConfig(dataset=str(path), ctx_len=64), packing, 1000)


WORDS = "def f(x):\n    return x + 1  # comment\n\n\nNames, and 1234 numbers!\n\n"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3() -> Tokenizer:
    """The embedded tokenizer, splitting text as Llama 3 does."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


@pytest.mark.parametrize("tokenizer", [TOKENIZER, llama_3()], ids=["embedded", "Llama 3"])
@pytest.mark.parametrize("seed", range(10))
def test_a_long_document_in_pieces_has_the_tokens_of_the_whole(tokenizer, seed: int):
    chosen = Random(seed).choices([*WORDS, "\n\n", " \n", "é", "word", "!\n", "word\n"], k=2000)
    text = "".join(part + "word\n" * (n % 20 == 0) for n, part in enumerate(chosen))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "MAX_PIECE_CHARS", 120)
        cut = list(pieces_of(Document(3, text)))
    assert "".join(piece.text for piece in cut) == text
    assert max(len(piece.text) for piece in cut) <= 120
    assert [piece.is_last for piece in cut] == [False] * (len(cut) - 1) + [True]
    assert all(
        after.text[0] == "\n" and before.text[-1].isalnum() for before, after in pairwise(cut)
    )
    ids = [i for piece in cut for i in tokenizer.encode(piece.text, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["x" * 1000, "word " * 200, "?\n" * 500], ids=len)
def test_a_document_without_a_good_place_is_cut_anyway(monkeypatch, text: str):
    monkeypatch.setattr(pieces, "MAX_PIECE_CHARS", 120)
    cut = [piece.text for piece in pieces_of(Document(0, text))]
    assert "".join(cut) == text
    assert all(60 <= len(piece) <= 120 for piece in cut[:-1])


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_reading_can_begin_inside_a_long_document(monkeypatch, count: int):
    monkeypatch.setattr(pieces, "MAX_PIECE_CHARS", 120)
    documents = [WORDS, WORDS * 20, "short", WORDS * 9]
    rows = rows_of(documents, 12, epochs=None)
    rows.take(count)
    cursor = rows.cursor
    assert np.array_equal(rows_of(documents, 12, cursor, epochs=None).take(50), rows.take(50))
    body = rows_of(documents, 12).take(40)[:, 1:].flatten().tolist()
    assert body == joined(documents)[: len(body)]
