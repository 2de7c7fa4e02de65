"""Clarity against its formula, position by position."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from sae_engine.features.index.clarity import DOUBT, pair_counts
from sae_engine.schema.features import CLEAR
from tests.sae_engine.features.index_reference import (
    BOTH_TOKENIZERS,
    Case,
    built,
    case_of_rows,
    id_of,
    random_case,
)


def expected(case: Case, latent: int, spelled: dict[int, str], num_top: int) -> float:
    """The best word of the latent's top tokens, by counting positions."""
    members: dict[str, list[int]] = defaultdict(list)
    for token, text in spelled.items():
        members[text].append(token)
    by_f1 = sorted(
        case.token_statistics(latent).items(), key=lambda pair: (-pair[1]["f1"], pair[0])
    )
    best = 0.0
    for token, _ in by_f1[:num_top]:
        if not any(character.isalnum() for character in spelled[token]):
            continue
        held = set(case.positions_of(members[spelled[token]]))
        together = sum(1 for n, _ in case.active(latent) if n in held)
        best = max(best, 2 * together / (len(held) + case.fired(latent) + DOUBT))
    return best


@pytest.mark.parametrize("make_tokenizer", BOTH_TOKENIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_clarity_agrees_with_brute_force(tmp_path: Path, seed: int, make_tokenizer: Any) -> None:
    tokenizer: Tokenizer = make_tokenizer()
    case = random_case(seed, num_tokens=400, ids=range(tokenizer.get_vocab_size()))
    index = built(tmp_path, case, tokenizer=tokenizer)
    spelled = dict(enumerate(index.vocabulary.folded))
    listed = index.features(sort="clarity", limit=case.d_sae).items
    wanted = {latent: expected(case, latent, spelled, 10) for latent in range(case.d_sae)}
    assert {row.index: row.clarity for row in listed} == pytest.approx(wanted)
    assert [row.clarity for row in listed] == sorted(wanted.values(), reverse=True)
    assert [row.index for row in listed] == sorted(wanted, key=lambda i: (-wanted[i], i))


def test_all_spellings_of_a_word_are_one_group_named_by_the_most_frequent(tmp_path: Path) -> None:
    tokenizer = BOTH_TOKENIZERS[0]()
    cat, spaced, other = (id_of(tokenizer, token) for token in ("cat", "Ġcat", "a"))
    rows = [[cat, other, spaced, other] * 40 + [spaced] * 20]
    held = [n for n, token in enumerate(rows[0]) if token in (cat, spaced)]
    index = built(tmp_path, case_of_rows(rows, lambda n: {1: 1.0} if n in held else {}, 3))
    feature = index.summary(1)
    assert feature.clarity == pytest.approx(2 * 100 / (100 + 100 + DOUBT))
    assert feature.name == "cat"
    assert (index.summary(0).clarity, index.summary(0).name) == (0, None)


def test_punctuation_is_no_word(tmp_path: Path) -> None:
    tokenizer = BOTH_TOKENIZERS[0]()
    mark, word = (id_of(tokenizer, token) for token in ("(", "a"))
    rows = [[mark] * 100 + [word] * 100]
    firing: dict[bool, dict[int, float]] = {True: {0: 1.0, 1: 1.0}, False: {1: 1.0}}
    index = built(tmp_path, case_of_rows(rows, lambda n: firing[n < 100], 2))
    assert (index.summary(0).clarity, index.summary(0).name) == (0, None)
    assert index.summary(1).clarity == pytest.approx(2 * 100 / (100 + 200 + DOUBT))
    assert [row.index for row in index.features(sort="clarity").items] == [1, 0]


def test_a_feature_that_few_positions_speak_for_has_no_name(tmp_path: Path) -> None:
    tokenizer = BOTH_TOKENIZERS[0]()
    rare, other = (id_of(tokenizer, token) for token in ("cat", "a"))
    rows = [[rare] * 9 + [other] * 50]
    index = built(tmp_path, case_of_rows(rows, lambda n: {0: 1.0} if n < 9 else {1: 1.0}, 2))
    assert index.summary(0).clarity == pytest.approx(18 / (18 + DOUBT))
    assert index.summary(0).clarity < CLEAR <= index.summary(1).clarity
    assert (index.summary(0).name, index.summary(1).name) == (None, "a")


def test_counts_of_pairs_agree_with_the_table(tmp_path: Path) -> None:
    case = random_case(5)
    arrays = built(tmp_path, case).arrays
    tokens, latents = np.divmod(np.arange(25 * case.d_sae), case.d_sae)
    counts = pair_counts(arrays, tokens, latents).reshape(25, case.d_sae)
    for token in range(25):
        of_token = case.statistics(case.positions_of([token]))
        numbers = {latent: numbers["count"] for latent, numbers in of_token.items()}
        assert counts[token].tolist() == [numbers.get(i, 0) for i in range(case.d_sae)]
