"""Token ids become their text, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sae_engine.features.index.invert import group_bounds
from sae_engine.features.index.vocabulary import Vocabulary, shown_tokens, token_bytes
from tests.sae_engine.features.index_reference import (
    BOTH_TOKENIZERS,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    id_of,
)


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int | None = None) -> Vocabulary:
    pieces = token_bytes(tokenizer, vocab_size or tokenizer.get_vocab_size())
    offsets = group_bounds(np.array([len(piece) for piece in pieces]))
    return Vocabulary(offsets, np.frombuffer(b"".join(pieces), np.uint8))


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_shown_tokens_join_to_the_original_text(make: Callable[[], Tokenizer], text: str) -> None:
    text = text.replace("▁", "")
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    shown = vocabulary_of(tokenizer).window(ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == text


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
@pytest.mark.parametrize("character", ["é", "日", "😀"])
def test_a_character_of_several_tokens_is_shown_at_the_last_one(
    make: Callable[[], Tokenizer], character: str
) -> None:
    tokenizer = make()
    ids = tokenizer.encode(f"cat{character}in", add_special_tokens=False).ids
    shown = vocabulary_of(tokenizer).window(ids)
    size = len(character.encode())
    assert shown[: size + 1] == ["cat", *[""] * (size - 1), character]


def test_a_piece_can_end_a_character_and_begin_another() -> None:
    pieces = [b"a\xc3", b"\xa9b\xe6\x97", b"\xa5", b" \xf0\x9f", b"\x98\x80!"]
    assert shown_tokens(pieces) == ["a", "éb", "日", " ", "😀!"]


def test_bytes_that_are_not_utf_8_are_shown_as_hex() -> None:
    assert shown_tokens([b"\xa9", b"ok", b"\xe6\x97", b"x", b"\xf0"]) == [
        "<0xA9>",
        "ok",
        "",
        "<0xE6><0x97>x",
        "<0xF0>",
    ]


def test_a_replacement_character_in_the_text_is_kept() -> None:
    assert shown_tokens(["\N{REPLACEMENT CHARACTER}".encode()]) == ["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
def test_spaces_are_shown_as_spaces(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    vocabulary = vocabulary_of(tokenizer)
    assert " cat" in vocabulary.texts
    assert not any(mark in text for text in vocabulary.texts for mark in "Ġ▁")


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
def test_special_tokens_are_shown_as_their_names(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    bos = id_of(tokenizer, "<bos>")
    assert vocabulary_of(tokenizer).text(bos) == "<bos>"


def test_an_added_token_that_is_text_is_decoded() -> None:
    tokenizer = byte_fallback_tokenizer()
    assert vocabulary_of(tokenizer).text(id_of(tokenizer, "▁▁")) == "  "


def test_an_added_token_of_a_byte_level_tokenizer_is_taken_literally() -> None:
    tokenizer = Tokenizer.from_str(byte_level_tokenizer().to_str())
    tokenizer.add_tokens(["Ġé"])
    assert vocabulary_of(tokenizer).text(id_of(tokenizer, "Ġé")) == "Ġé"


def test_an_id_without_a_token_is_shown_as_its_number_and_has_no_text() -> None:
    tokenizer = byte_level_tokenizer()
    size = tokenizer.get_vocab_size()
    vocabulary = vocabulary_of(tokenizer, size + 3)
    assert len(vocabulary) == size + 3
    assert vocabulary.text(size + 2) == f"[{size + 2}]"
    assert vocabulary.texts[size + 2] == ""


def test_a_tokenizer_without_a_decoder_shows_raw_token_names() -> None:
    tokenizer = Tokenizer.from_str(byte_level_tokenizer().to_str())
    tokenizer.decoder = None  # pyright: ignore[reportAttributeAccessIssue]
    assert vocabulary_of(tokenizer).text(id_of(tokenizer, "Ġcat")) == "Ġcat"
