"""A lookup finds the tokens that a text means and their features, as brute force does."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers

from sae_engine.errors import UserError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.lookup import LookupResult, TokenMatch
from tests.sae_engine.features.index_reference import (
    BOTH_TOKENIZERS,
    Case,
    built,
    byte_level_tokenizer,
    case_of_rows,
    random_case,
)


def token(text: str, tokenizer: Tokenizer | None = None) -> int:
    tokenizer = tokenizer or byte_level_tokenizer()
    (id_,) = tokenizer.encode(text, add_special_tokens=False).ids
    return id_


def ids_of(text: str, tokenizer: Tokenizer | None = None) -> list[int]:
    return (tokenizer or byte_level_tokenizer()).encode(text, add_special_tokens=False).ids


CATS = ["cat", " cat", " Cat", " CAT"]
WORDS = [*CATS, " dog", " in", "a", "b", "\n", "!"]


def assert_agrees(
    result: LookupResult, case: Case, positions: list[int], rank: str, min_count: int, limit: int
) -> None:
    """The result has the best features by brute force, with the same numbers."""
    expected = {
        latent: numbers
        for latent, numbers in case.statistics(positions).items()
        if numbers["count"] >= min_count
    }
    name = {"max": "max_activation"}.get(rank, rank)
    order = sorted(expected, key=lambda i: (-round(expected[i][name], 9), -expected[i]["count"], i))
    assert result.count == len(positions)
    assert [f.index for f in result.features] == order[:limit]
    for feature in result.features:
        numbers = feature.model_dump(exclude={"index", "density", "label", "example"})
        assert numbers == pytest.approx(expected[feature.index], rel=1e-6)
        assert feature.density == case.fired(feature.index) / case.num_tokens
    assert bool(result.message) == (not result.features)


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 4),
    rank=st.sampled_from(["f1", "lift", "recall", "precision", "max"]),
    min_count=st.integers(1, 6),
    limit=st.integers(1, 12),
)
def test_a_lookup_agrees_with_brute_force(
    seed: int, k: int, rank, min_count: int, limit: int
) -> None:
    case = random_case(seed, num_tokens=250, k=k, d_sae=15, ids=[token(w) for w in WORDS])
    options = {"rank": rank, "min_count": min_count, "limit": limit}
    with tempfile.TemporaryDirectory() as folder:
        index = built(Path(folder), case)
        cases: list[tuple[str, TokenMatch, list[str]]] = [
            ("cat", "fold", CATS),
            (" cat", "exact", [" cat"]),
            ("c", "prefix", CATS),
            (" c", "prefix", CATS[1:]),
            ("AT", "substring", CATS),
            (" Ca", "substring", CATS[1:]),
            ("\n", "exact", ["\n"]),
        ]
        for text, match, words in cases:
            positions = case.positions_of(token(w) for w in words)
            result = index.lookup(text, match=match, **options)
            assert not result.phrase
            assert_agrees(result, case, positions, rank, min_count, limit)
        for text, phrases in [
            ("a b", []),
            ("Cat dog", [[" Cat", " dog"]]),
            ("ab", [["a", "b"]]),
            ("!!", [["!", "!"]]),
        ]:
            sequences = [[token(word) for word in phrase] for phrase in phrases]
            positions = sorted({n for ids in sequences for n in case.positions_of_phrase(ids)})
            result = index.lookup(text, exact_case=True, **options)
            assert result.phrase
            assert_agrees(result, case, positions, rank, min_count, limit)


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
@pytest.mark.parametrize("text", ["cat", " cat", "cAt", "cat ", "  CAT", "▁cat"])
def test_fold_ignores_case_and_outer_spaces(
    tmp_path: Path, make: Callable[[], Tokenizer], text: str
) -> None:
    tokenizer = make()
    words = ["cat", " cat", " Cat"]
    ids = [token(w, tokenizer) for w in words]
    rows = [[ids[1]] * 5, [ids[2]] * 7, [ids[0]]]
    index = built(tmp_path, case_of_rows(rows, lambda _: {0: 1.0}, 1), tokenizer=tokenizer)
    result = index.lookup(text)
    shown = [(t.text, t.count) for t in result.tokens if t.count]
    assert shown == [(" Cat", 7), (" cat", 5), ("cat", 1)]
    assert {t.text.strip().casefold() for t in result.tokens} == {"cat"}
    assert result.count == 13
    assert not result.phrase


def test_exact_distinguishes_case_and_spaces(tmp_path: Path) -> None:
    rows = [[token(w) for w in CATS]]
    index = built(tmp_path, case_of_rows(rows, lambda n: {n: 1.0}, 4))
    for n, word in enumerate(CATS):
        result = index.lookup(word, match="exact", min_count=1)
        assert [t.text for t in result.tokens] == [word]
        assert [f.index for f in result.features] == [n]


def test_a_single_space_can_be_looked_up(tmp_path: Path) -> None:
    index = built(tmp_path, case_of_rows([[token(" ")]], lambda _: {0: 1.0}, 1))
    assert [t.text for t in index.lookup(" ", min_count=1).tokens] == [" "]


def test_matching_tokens_that_do_not_occur_have_count_zero(tmp_path: Path) -> None:
    index = built(tmp_path, case_of_rows([[token("cat")]], lambda _: {0: 1.0}, 1))
    counts = {t.text: t.count for t in index.lookup("cat").tokens}
    assert counts["cat"] == 1
    assert counts[" cat"] == 0


def test_similar_spellings_are_suggested_for_a_text_that_does_not_occur(
    tmp_path: Path,
) -> None:
    index = built(tmp_path, case_of_rows([ids_of("cat cat in")], lambda _: {0: 1.0}, 1))
    assert index.lookup("Catt").suggestions == ["cat"]
    assert index.lookup("zzz").suggestions == []
    assert index.lookup("cat").suggestions == []


@pytest.mark.parametrize(
    ("text", "match", "tokens", "message"),
    [
        ("dog", "fold", {" dog"}, "'dog' does not occur in the 3 indexed tokens"),
        ("cat dog", "fold", set[str](), "'cat dog' does not occur in the 3 indexed tokens"),
        ("c.d", "regex", set[str](), "The expression 'c.d' matches nothing in the 3 indexed"),
        ("zebra", "prefix", set[str](), "No token of this model's vocabulary starts with 'zebra'"),
        ("zebra", "substring", set[str](), "No token of this model's vocabulary contains 'zebra'"),
        ("in", "fold", {"in", " in"}, "'in' occurs once in.*; lower the minimum count.$"),
        ("cat", "fold", set(CATS), "'cat' occurs 2 times in the 3 indexed tokens.* at least 5 of"),
    ],
)
def test_a_lookup_that_finds_no_features_says_why(
    tmp_path: Path, text: str, match: TokenMatch, tokens: set[str], message: str
) -> None:
    index = built(tmp_path, case_of_rows([ids_of("cat cat in")], lambda _: {0: 1.0}, 1))
    result = index.lookup(text, match=match)
    assert result.features == []
    assert {t.text for t in result.tokens} == tokens
    assert re.search(message, result.message or "")


def test_features_below_min_count_are_left_out(tmp_path: Path) -> None:
    row = [token(" cat")] * 4
    case = case_of_rows([row], lambda n: {0: 1.0} if n < 3 else {0: 1.0, 1: 9.0}, d_sae=2)
    index = built(tmp_path, case)
    assert [f.index for f in index.lookup("cat", rank="max", min_count=1).features] == [1, 0]
    assert [f.index for f in index.lookup("cat", rank="max", min_count=2).features] == [0]


def test_a_phrase_does_not_continue_in_the_next_row(tmp_path: Path) -> None:
    cat, dog = token("cat"), token(" dog")
    index = built(tmp_path, case_of_rows([[cat, dog, cat], [dog, cat]], lambda _: {0: 1.0}, 1))
    assert index.lookup("cat dog").count == 1


def test_overlapping_occurrences_of_a_phrase_are_all_counted(tmp_path: Path) -> None:
    case = case_of_rows([[token("!")] * 4], lambda _: {0: 1.0}, 1)
    assert built(tmp_path, case).lookup("!!").count == 3


def test_a_phrase_is_found_with_and_without_a_leading_space(tmp_path: Path) -> None:
    rows = [ids_of("cat dog"), ids_of("in cat dog")]
    index = built(tmp_path, case_of_rows(rows, lambda _: {0: 1.0}, 1))
    assert index.lookup("cat dog").count == 2
    assert index.lookup(" cat dog", match="exact").count == 1


def test_the_statistics_of_a_phrase_are_over_its_last_token(tmp_path: Path) -> None:
    rows = [ids_of("cat dog"), ids_of("in dog")]
    index = built(tmp_path, case_of_rows(rows, lambda n: {n: 1.0}, 4))
    assert [f.index for f in index.lookup("cat dog", min_count=1).features] == [1]


@pytest.mark.parametrize("make", BOTH_TOKENIZERS)
@pytest.mark.parametrize("character", ["é", "日", "😀"])
def test_a_character_of_several_tokens_is_found(
    tmp_path: Path, make: Callable[[], Tokenizer], character: str
) -> None:
    tokenizer = make()
    rows = [ids_of(f"cat{character}", tokenizer), ids_of(f"a{character}a", tokenizer)]
    case = case_of_rows(rows, lambda _: {0: 1.0}, 1)
    result = built(tmp_path, case, tokenizer=tokenizer).lookup(character)
    assert result.phrase
    assert result.count == 2


@pytest.mark.parametrize("match", ["fold", "prefix", "substring"])
def test_case_counts_if_it_is_to(tmp_path: Path, match: TokenMatch) -> None:
    index = built(tmp_path, case_of_rows([[token(w) for w in CATS]], lambda _: {0: 1.0}, 1))
    assert index.lookup("cat", match=match).count == 4
    assert index.lookup("cat", match=match, exact_case=True).count == 2
    assert index.lookup("Cat", match=match, exact_case=True).occurrences in (1, None)


def test_the_number_of_features_counts_those_beyond_the_limit(tmp_path: Path) -> None:
    case = case_of_rows([[token("cat")] * 6], lambda n: {0: 1.0, 1 + n % 2: 1.0, 3 + n: 1.0}, 9)
    index = built(tmp_path, case)
    for min_count, total in [(1, 9), (3, 3), (5, 1), (7, 0)]:
        result = index.lookup("cat", min_count=min_count, limit=2)
        assert (result.total, len(result.features)) == (total, min(2, total))


def test_a_text_that_normalizes_to_one_token_is_not_a_phrase(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"cat": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    case = case_of_rows([[0, 1]], lambda n: {n: 1.0}, 2)
    index = built(tmp_path, case, tokenizer=tokenizer)
    result = index.lookup("ｃａｔ", min_count=1)
    assert not result.phrase
    assert [f.index for f in result.features] == [0]


def test_a_text_outside_the_vocabulary_does_not_match_the_unknown_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"cat": 0, "[UNK]": 1}, unk_token="[UNK]"))
    case = case_of_rows([[0, 1]], lambda n: {n: 1.0}, 2)
    result = built(tmp_path, case, tokenizer=tokenizer).lookup("dog", min_count=1)
    assert result.features == []
    assert result.message is not None
    assert "'dog' does not occur" in result.message


def test_empty_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The text to look up is empty"):
        built(tmp_path, random_case(0)).lookup("")


def test_each_feature_has_its_label_and_an_example(tmp_path: Path) -> None:
    rows = [ids_of("in cat")]
    index: FeatureIndex = built(tmp_path, case_of_rows(rows, lambda n: {n: 1.0}, 2))
    (feature,) = index.lookup("cat", min_count=1, labels={1: "cats"}).features
    assert feature.label == "cats"
    assert feature.example is not None
    assert feature.example.tokens == ["in", " cat"]
    assert feature.example.peak == 1
