"""A text is found wherever it occurs in the corpus, as Python finds it in the decoded rows."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.features.index import corpus_text, expressions
from sae_engine.features.index.corpus_text import CorpusText
from sae_engine.features.index.expressions import find_expression
from sae_engine.features.index.format import array_file
from sae_engine.features.index.vocabulary import token_bytes
from sae_engine.schema.lookup import TokenMatch
from tests.sae_engine.features.index_reference import (
    BOTH_TOKENIZERS,
    Case,
    built,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    case_of_rows,
    id_of,
)

PIECES = [b"a", b"A", b"aa", b"b", b"_", b"__", b"__(", b" cat", b"\n", b"\xc3", b"\xa9", b"\xff"]
PIECES += ["é".encode(), "É".encode(), "Ⱥ".encode(), "ⱥ".encode(), "ſ".encode(), b"S", b"s", b""]
# Pieces of whole characters, which Python can decode.
WHOLE = [n for n, piece in enumerate(PIECES) if piece not in (b"\xc3", b"\xa9", b"\xff")]

Span = tuple[int, int]


class Corpus:
    """Random pieces in rows, with breaks, as an engine's text and as plain Python."""

    def __init__(self, seed: int, usable: list[int], num_tokens: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self.ids: list[int] = rng.choice(usable, num_tokens).tolist()
        self.firsts = sorted({0, *rng.choice(num_tokens, 6).tolist(), num_tokens})
        lengths = np.array([len(PIECES[i]) for i in self.ids])
        ends = np.cumsum(lengths)
        bounds = np.unique(np.append(ends, 0)[np.array(self.firsts) - 1])
        data = b"".join(PIECES[i] for i in self.ids).replace(b"\xff", b"\xfe")
        self.text = CorpusText(data, ends, bounds)

    def parts(self) -> Iterator[tuple[bytes, list[int]]]:
        """Continuous texts, each with the position of every byte."""
        for first, end in pairwise(self.firsts):
            places = range(first, end)
            yield (
                b"".join(PIECES[self.ids[n]] for n in places),
                [n for n in places for _ in PIECES[self.ids[n]]],
            )

    def found(self, spans: Callable[[bytes], Iterator[Span]]) -> tuple[list[int], int]:
        """Distinct last positions and number of the spans of bytes in each text."""
        lasts = [at[end - 1] for part, at in self.parts() for start, end in spans(part)]
        return sorted(set(lasts)), len(lasts)


def spans_of_bytes(wanted: bytes) -> Callable[[bytes], Iterator[Span]]:
    def spans(part: bytes) -> Iterator[Span]:
        start = part.find(wanted)
        while start >= 0:
            yield start, start + len(wanted)
            start = part.find(wanted, start + 1)

    return spans


def spans_of_characters(find: Callable[[str], Iterator[Span]]) -> Callable[[bytes], Iterator[Span]]:
    def spans(part: bytes) -> Iterator[Span]:
        text = part.decode()
        for start, end in find(text):
            yield len(text[:start].encode()), len(text[:end].encode())

    return spans


def agrees(hits: corpus_text.Hits, expected: tuple[list[int], int]) -> bool:
    return (hits.positions.tolist(), hits.occurrences) == expected


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), wanted=st.text("aA_ catéÉ(\nz", min_size=1, max_size=4))
def test_a_string_is_found_as_python_finds_its_bytes(seed: int, wanted: str) -> None:
    corpus = Corpus(seed, list(range(len(PIECES))))
    hits = corpus.text.literal(wanted, exact_case=True)
    assert agrees(hits, corpus.found(spans_of_bytes(wanted.encode())))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), wanted=st.text("aAbéÉⱥȺsSſ_", min_size=1, max_size=3))
def test_ignoring_case_compares_each_character(seed: int, wanted: str) -> None:
    corpus = Corpus(seed, WHOLE)

    def find(text: str) -> Iterator[Span]:
        for start in range(len(text) - len(wanted) + 1):
            part = text[start : start + len(wanted)]
            if [c.casefold() for c in part] == [c.casefold() for c in wanted]:
                yield start, start + len(wanted)

    hits = corpus.text.literal(wanted, exact_case=False)
    assert agrees(hits, corpus.found(spans_of_characters(find)))


@pytest.mark.parametrize(
    "pattern",
    ["a+", "_|é", "^a", "b$", r"cat(_|\n)", "[^a]+", "(a)(b)?", "a|aa", r"\s", "a{2,3}?", "(?s)a.b",
     "ca|[É_]+", "^$|b", "a*"],
)  # fmt: skip
@pytest.mark.parametrize("exact_case", [True, False])
def test_an_expression_is_found_as_python_finds_it(
    pattern: str, exact_case: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressions, "LEAST_BLOCK_BYTES", 8)
    flags = re.MULTILINE | (0 if exact_case else re.IGNORECASE)

    def find(text: str) -> Iterator[Span]:
        return (m.span() for m in re.finditer(pattern, text, flags) if m.group())

    for seed in range(6):
        corpus = Corpus(seed, WHOLE)
        hits = find_expression(corpus.text, pattern, exact_case=exact_case)
        assert agrees(hits, corpus.found(spans_of_characters(find)))


def test_bytes_that_are_not_text_match_no_expression_of_text() -> None:
    corpus = Corpus(0, [PIECES.index(b"\xff"), PIECES.index(b"\xa9"), PIECES.index(b"a")])
    hits = find_expression(corpus.text, ".", exact_case=True)
    assert agrees(hits, corpus.found(spans_of_bytes(b"a")))


@pytest.mark.parametrize("pattern", ["(a+a+)+b", "(a|a)*b", "(a*)*c", "(?:a?){30}a{30}b"])
def test_an_expression_that_would_backtrack_for_ever_is_answered(pattern: str) -> None:
    text = CorpusText(b"a" * 50_000, np.arange(1, 50_001), np.array([0, 50_000]))
    began = time.monotonic()
    assert find_expression(text, pattern, exact_case=True).occurrences == 0
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("pattern", [".", "(?:[ab]{0,50}){9}c", r"(\w+)a"])
def test_a_search_that_takes_too_long_is_refused_in_one_sentence(pattern: str) -> None:
    bounds = np.arange(0, 50_001, 100)
    text = CorpusText(b"a" * 50_000, np.arange(1, 50_001), bounds)
    with pytest.raises(UserError, match=r"takes longer than 0 s on this index; simplify it"):
        find_expression(text, pattern, exact_case=True, limit_seconds=0)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a)(b", r"unexpected \)"),
        ("(", r"missing \)"),
        ("*", "no argument"),
        (r"(a)\1", "invalid escape"),
        ("(?=a)", "invalid perl operator"),
        ("(a{1000}){1000}", "repetition size"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_bad_expression_is_refused_in_one_sentence(pattern: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        find_expression(Corpus(0, WHOLE).text, pattern, exact_case=False)
    assert "(?im)" not in str(caught.value)
    assert "\n" not in str(caught.value)


def decoded(tokenizer: Tokenizer, rows: list[str]) -> list[list[int]]:
    return [tokenizer.encode(row, add_special_tokens=False).ids for row in rows]


def rows_case(rows: list[list[int]]) -> Case:
    return case_of_rows(rows, lambda n: {n % 3: 1.0}, 3)


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
@pytest.mark.parametrize(
    ("text", "match", "exact_case", "count"),
    [
        ("at d", "fold", False, 3),  # ends inside the token " dog"
        ("Cat d", "exact", False, 1),
        ("AT D", "fold", False, 3),
        ("AT D", "text", True, 0),
        ("cat", "text", False, 5),
        ("cat", "text", True, 3),
        ("é", "exact", False, 2),
        ("日cat", "text", False, 1),
        ("(?i)C.T", "regex", True, 5),
        ("cat do?g|日", "regex", False, 4),
    ],
)
def test_text_is_found_whatever_the_tokens(
    tmp_path: Path,
    make: Callable[[], Tokenizer],
    text: str,
    match: TokenMatch,
    exact_case: bool,
    count: int,
) -> None:
    tokenizer = make()
    rows = ["cat dog Cat dog", "écat dog", "é日cat Cat"]
    index = built(tmp_path, rows_case(decoded(tokenizer, rows)), tokenizer=tokenizer)
    result = index.lookup(text, match=match, exact_case=exact_case, min_count=1)
    assert result.phrase
    assert result.count == result.occurrences == count
    assert sum(token.count for token in result.tokens) == count
    assert bool(result.features) == bool(count)


def test_several_occurrences_in_one_token_are_one_position(tmp_path: Path) -> None:
    tokenizer = byte_fallback_tokenizer()
    wide = id_of(tokenizer, "▁▁")
    result = built(tmp_path, rows_case([[wide]]), tokenizer=tokenizer).lookup(" ", match="text")
    assert (result.count, result.occurrences) == (1, 2)


def test_overlapping_occurrences_of_a_string_all_count(tmp_path: Path) -> None:
    (ids,) = decoded(byte_level_tokenizer(), ["abababa"])
    index = built(tmp_path, rows_case([ids]))
    assert index.lookup("aba").count == 3
    assert index.lookup("aba", match="regex").count == 2


@pytest.mark.parametrize("breaks", [None, [2], [1, 2]])
def test_text_does_not_continue_across_a_break_or_a_row(
    tmp_path: Path, breaks: list[int] | None
) -> None:
    a, b = (decoded(byte_level_tokenizer(), [c])[0][0] for c in "ab")
    case = rows_case([[a, b, a, b], [b, a]])
    index = built(tmp_path, case, text_breaks=None if breaks is None else np.array(breaks))
    assert (index.folder / array_file("text_breaks")).exists() == (breaks is not None)
    expected = 2 if breaks is None else 1
    assert index.lookup("ba", match="text").count == expected
    assert index.lookup(r"b\W*a", match="regex").count == expected
    assert index.lookup("bb", match="text").count == 0


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
def test_a_special_token_has_no_text_and_ends_it(
    tmp_path: Path, make: Callable[[], Tokenizer]
) -> None:
    tokenizer = make()
    (cat, dog) = decoded(tokenizer, ["cat", " dog"])
    rows = [[*cat, id_of(tokenizer, "<bos>"), *dog, *cat, *dog]]
    index = built(tmp_path, rows_case(rows), tokenizer=tokenizer)
    assert index.lookup("bos", match="text").count == 0
    assert index.lookup("cat dog").count == 1
    assert index.lookup(r"cat\W*dog", match="regex").count == 1


def test_a_token_that_never_occurs_is_looked_for_in_the_text(tmp_path: Path) -> None:
    (whole,) = decoded(byte_level_tokenizer(), ["cat"])
    single = [decoded(byte_level_tokenizer(), [c])[0][0] for c in "cat"]
    with tempfile.TemporaryDirectory() as other:
        used = built(Path(other), rows_case([single, whole]))
        assert used.lookup("cat").count == 1
        assert used.lookup("cat").occurrences == 2
    unused = built(tmp_path, rows_case([single]))
    assert unused.lookup("cat").phrase
    assert unused.lookup("cat").count == 1


def test_what_is_searched_is_what_the_tokens_say(tmp_path: Path) -> None:
    tokenizer = byte_fallback_tokenizer()
    case = rows_case(decoded(tokenizer, ["cat é\n", "dog 日"]))
    index = built(tmp_path, case, tokenizer=tokenizer)
    pieces = token_bytes(tokenizer, tokenizer.get_vocab_size())
    text = CorpusText.of(index.arrays, index.special_ids)
    assert text.data == b"".join(pieces[i] for i in case.token_ids.tolist())
