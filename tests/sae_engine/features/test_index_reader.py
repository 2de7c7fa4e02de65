"""Lists and pages of features agree with brute force."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sae_engine.features.index import reader as reader_module
from sae_engine.features.index.contexts import evenly_spaced
from sae_engine.features.index.reader import FeatureIndex, NoSuchFeatureError
from sae_engine.features.index.shared import Shared
from sae_engine.schema.features import Context
from tests.sae_engine.features.index_reference import (
    Case,
    build,
    built,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    case_of_rows,
    id_of,
    random_case,
)

CASE = random_case(11, num_tokens=300, k=3, d_sae=40)


def ids_of(text: str) -> list[int]:
    return byte_level_tokenizer().encode(text, add_special_tokens=False).ids


def assert_context_agrees(context: Context, case: Case, latent: int, radius: int | None) -> int:
    """Check that a context is its row around its peak; return the peak's position in the corpus."""
    position = int(case.row_starts[context.row]) + context.position
    start, end = case.window(position, radius)
    tokenizer = byte_level_tokenizer()
    assert context.peak == position - start
    assert context.tokens == [tokenizer.decode([i]) for i in case.token_ids[start:end]]
    assert context.activations == [case.codes[n].get(latent, 0.0) for n in range(start, end)]
    assert context.activation == context.activations[context.peak]
    return position


def folded(case: Case, latent: int, radius: int | None) -> list[tuple[int, int]]:
    """(first position, copies) of contexts with the same tokens and peak, strongest first."""
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for position, _ in case.active(latent):
        start, end = case.window(position, radius)
        key = (tuple(case.token_ids[start:end].tolist()), position - start)
        groups.setdefault(key, []).append(position)
    return [(places[0], len(places)) for places in groups.values()]


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 4),
    radius=st.sampled_from([None, 0, 1, 3, 16]),
    num_tokens=st.integers(2, 150),
)
def test_a_feature_page_agrees_with_brute_force(
    seed: int, k: int, radius: int | None, num_tokens: int
) -> None:
    # Printable ASCII ids only, so that a token decodes alone.
    ids = [id_of(byte_level_tokenizer(), c) for c in "abcd"]
    case = random_case(seed, k=k, num_tokens=num_tokens, ids=ids, d_sae=12)
    with tempfile.TemporaryDirectory() as folder:
        index = built(Path(folder), case)
        for latent in range(case.d_sae):
            assert_feature_agrees(index, case, latent, radius)


def assert_feature_agrees(index: FeatureIndex, case: Case, latent: int, radius: int | None) -> None:
    window = "full" if radius is None else radius
    feature = index.feature(latent, num_contexts=4, window=window)
    active = case.active(latent)
    acts = [a for _, a in active]

    assert feature.density.fired == len(active)
    assert feature.density.seen == case.num_tokens
    assert feature.density.fraction == len(active) / case.num_tokens
    assert feature.max_activation == max(acts, default=0.0)
    share = len(active) / case.num_tokens
    assert feature.state == ("dead" if not acts else "dense" if share > 0.1 else "alive")

    places = [assert_context_agrees(c, case, latent, radius) for c in feature.contexts]
    copies = [c.copies for c in feature.contexts]
    assert list(zip(places, copies, strict=True)) == folded(case, latent, radius)[:4]

    edges = feature.histogram.edges
    assert len(edges) == (41 if acts else 0)
    assert feature.histogram.counts == [
        sum(low < a <= high for a in acts) for low, high in pairwise(edges)
    ]
    assert sum(feature.histogram.counts) == len(acts)

    assert len(feature.intervals) == (5 if acts else 0)
    for interval in feature.intervals:
        inside = [a for a in acts if interval.low < a <= interval.high]
        assert interval.share == len(inside) / len(acts)
        assert bool(interval.contexts) == bool(inside)
        assert len(interval.contexts) <= 5
        for context in interval.contexts:
            assert_context_agrees(context, case, latent, radius)
            assert context.activation in inside
    if acts:
        assert [i.high for i in feature.intervals] == pytest.approx(
            [max(acts) * n / 5 for n in (5, 4, 3, 2, 1)]
        )
        assert sum(i.share for i in feature.intervals) == pytest.approx(1)

    expected = case.token_statistics(latent)
    best = sorted(expected, key=lambda t: (-round(expected[t]["f1"], 7), t))[:10]
    assert [t.id for t in feature.top_tokens] == best
    for top in feature.top_tokens:
        numbers = top.model_dump(exclude={"id", "text"})
        assert numbers == pytest.approx(expected[top.id], rel=1e-6)
        assert top.text == byte_level_tokenizer().decode([top.id])


def test_a_full_window_is_exactly_the_row(tmp_path: Path) -> None:
    rows = [ids_of("in the cat"), ids_of("dog")]
    last = len(rows[0]) - 1
    case = case_of_rows(rows, lambda n: {0: 1.0} if n == last else {1: 0.5}, d_sae=2)
    context = built(tmp_path, case).feature(0, window="full").contexts[0]
    assert "".join(context.tokens) == "in the cat"
    assert (context.row, context.position, context.peak) == (0, last, last)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
@pytest.mark.parametrize("character", ["é", "日", "😀"])
def test_a_window_that_cuts_a_character_has_no_broken_text(
    tmp_path: Path, tokenizer, character: str
) -> None:
    ids = tokenizer.encode(f"cat{character}cat{character}cat", add_special_tokens=False).ids
    middle = len(ids) // 2
    case = case_of_rows([ids], lambda n: {0: 1.0} if n == middle else {1: 0.5}, d_sae=2)
    index = built(tmp_path, case, tokenizer=tokenizer)
    for radius in range(middle + 1):
        tokens = index.feature(0, window=radius).contexts[0].tokens
        assert len(tokens) == 2 * radius + 1
        assert set(tokens) <= {"cat", "", character}
    assert "".join(tokens) == f"cat{character}cat{character}cat"


def test_every_piece_of_a_character_keeps_its_activation(tmp_path: Path) -> None:
    ids = ids_of("cat日")
    acts = {1: 0.25, 2: 2.0, 3: 0.5}
    case = case_of_rows([ids], lambda n: {0: acts[n]} if n in acts else {1: 1.0}, d_sae=2)
    context = built(tmp_path, case).feature(0).contexts[0]
    assert context.tokens == ["cat", "", "", "日"]
    assert context.activations == [0.0, 0.25, 2.0, 0.5]
    assert context.peak == 2


def test_text_that_looks_like_markup_is_not_escaped(tmp_path: Path) -> None:
    text = "<script>alert('&amp;')</script>"
    case = case_of_rows([ids_of(text)], lambda _: {0: 1.0}, d_sae=1)
    assert "".join(built(tmp_path, case).feature(0, window="full").contexts[0].tokens) == text


def test_interval_examples_are_evenly_spaced_over_the_interval(tmp_path: Path) -> None:
    # Distinct tokens, so that nothing folds; all activations lie in the highest slice.
    case = case_of_rows([list(range(2, 102))], lambda n: {0: 10 - n / 100}, d_sae=1)
    top = built(tmp_path, case).feature(0, window=0).intervals[0]
    assert top.share == 1
    assert [c.position for c in top.contexts] == [0, 25, 51, 74, 99]


@given(length=st.integers(0, 500), count=st.integers(2, 60))
def test_evenly_spaced_numbers_are_distinct_and_include_both_ends(length: int, count: int) -> None:
    places = list(evenly_spaced(length, count))
    assert len(places) == min(length, count)
    assert places == sorted(set(places))
    if length:
        assert (places[0], places[-1]) == (0, length - 1)
        assert np.ptp(np.diff(places), axis=0) <= 1 if len(places) > 2 else True


@pytest.mark.parametrize("index", [-1, 30])
def test_a_feature_outside_the_sae_is_an_error_with_the_bounds(tmp_path: Path, index: int) -> None:
    with pytest.raises(NoSuchFeatureError, match=rf"no feature {index};.* 0 to 29\."):
        built(tmp_path, random_case(0)).feature(index)


def test_label_notes_and_star_are_passed_through(tmp_path: Path) -> None:
    index = built(tmp_path, random_case(0))
    feature = index.feature(4, labels={4: "cats", 5: ""}, notes="mine", stars={4})
    assert (feature.label, feature.notes, feature.starred) == ("cats", "mine", True)
    assert index.feature(5, labels={4: "cats", 5: ""}).label is None
    assert not index.feature(5, stars={4}).starred


def test_many_threads_can_open_and_read_at_once(tmp_path: Path) -> None:
    folder = build(tmp_path, CASE)
    expected = FeatureIndex.open(folder)
    shared = FeatureIndex.open(folder)

    def read(i: int) -> bool:
        own = FeatureIndex.open(folder)
        return all(
            which.feature(i % 40) == expected.feature(i % 40)
            and which.features(q="a") == expected.features(q="a")
            and which.lookup("cat") == expected.lookup("cat")
            for which in (own, shared)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_an_open_index_stays_readable_when_its_folder_is_replaced(tmp_path: Path) -> None:
    index = built(tmp_path, CASE)
    before = index.feature(3)
    build(tmp_path, random_case(99))
    assert index.feature(3) == before


def test_max_activations_agree_with_brute_force(tmp_path: Path) -> None:
    index = built(tmp_path, CASE)
    expected = [max((act for _, act in CASE.active(i)), default=0.0) for i in range(40)]
    assert min(expected) == 0  # some latents are dead
    assert index.max_activations(range(40)) == expected
    assert index.max_activations([7, 3, 7]) == [expected[7], expected[3], expected[7]]
    assert index.max_activations([]) == []


@pytest.fixture
def no_vocabularies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No vocabulary is kept yet; later at most two are."""
    files = ("vocabulary_bytes.npy", "vocabulary_offsets.npy")
    monkeypatch.setattr(reader_module, "_vocabularies", Shared(2, *files))


def tokenizer_with(token: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_level_tokenizer().to_str())
    tokenizer.add_tokens([token])
    return tokenizer


@pytest.mark.usefixtures("no_vocabularies")
def test_the_last_used_vocabularies_are_shared_and_older_ones_dropped(tmp_path: Path) -> None:
    folders = [
        build(tmp_path / str(n), CASE, tokenizer=tokenizer_with(f"token{n}")) for n in range(3)
    ]
    first = FeatureIndex.open(folders[0]).vocabulary
    second = FeatureIndex.open(folders[1]).vocabulary
    assert FeatureIndex.open(folders[0]).vocabulary is first
    FeatureIndex.open(folders[2])
    assert FeatureIndex.open(folders[0]).vocabulary is first
    assert FeatureIndex.open(folders[1]).vocabulary is not second


@pytest.mark.usefixtures("no_vocabularies")
def test_a_shared_vocabulary_does_not_depend_on_the_files_of_the_first_index(
    tmp_path: Path,
) -> None:
    folder = build(tmp_path / "1", CASE)
    texts = FeatureIndex.open(folder).vocabulary.texts
    file = folder / "vocabulary_offsets.npy"
    with file.open("r+b") as opened:  # in place, unlike a new version of the file
        opened.write(b"\0" * file.stat().st_size)
    vocabulary = built(tmp_path / "2", CASE).vocabulary
    assert [*map(vocabulary.piece, range(9))] == [text.encode() for text in texts[:9]]
