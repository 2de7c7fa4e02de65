"""An index agrees with brute force, and is published completely or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.features.index import codes as codes_module
from sae_engine.features.index import invert, parts
from sae_engine.features.index.build import IndexCorpus, build_index
from sae_engine.features.index.codes import CorpusEncoder
from sae_engine.features.index.format import IndexArrays, open_index
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.kernels import grouping
from tests.sae_engine.features.index_reference import (
    D_IN,
    Case,
    build,
    built,
    byte_level_tokenizer,
    case_of_rows,
    random_case,
)

pytestmark = pytest.mark.usefixtures("two_threads")


def arrays_of(folder: Path) -> IndexArrays:
    return open_index(folder)[1]


def assert_agrees(arrays: IndexArrays, case: Case) -> None:
    """Every array equals brute force."""
    acts, latent_acts, pair_maxes, pair_sums = (
        array.astype(np.float64) * arrays.act_scale
        for array in (arrays.acts, arrays.latent_acts, arrays.pair_maxes, arrays.pair_sums)
    )
    assert arrays.token_ids.tolist() == case.token_ids.tolist()
    assert arrays.row_starts.tolist() == case.row_starts.tolist()
    for n, code in enumerate(case.codes):
        pairs = zip(arrays.indices[n].tolist(), acts[n].tolist(), strict=True)
        assert {i: a for i, a in pairs if a > 0} == code

    for latent in range(case.d_sae):
        start, end = arrays.latent_starts[latent : latent + 2]
        stored = zip(arrays.latent_positions[start:end], latent_acts[start:end], strict=True)
        assert [(int(n), float(a)) for n, a in stored] == case.active(latent)

        start, end = arrays.latent_token_starts[latent : latent + 2]
        f1 = {t: s["f1"] for t, s in case.token_statistics(latent).items()}
        stored_tokens = arrays.latent_tokens[start:end].tolist()
        assert stored_tokens == sorted(f1, key=lambda t: (-round(f1[t], 7), t))

    for token in range(len(arrays.token_starts) - 1):
        start, end = arrays.token_starts[token : token + 2]
        positions = case.positions_of([token])
        assert arrays.token_positions[start:end].tolist() == positions

        start, end = arrays.pair_starts[token : token + 2]
        expected = case.statistics(positions)
        assert arrays.pair_latents[start:end].tolist() == sorted(expected)
        for p, latent in zip(range(start, end), sorted(expected), strict=True):
            numbers = expected[latent]
            assert arrays.pair_counts[p] == numbers["count"]
            assert pair_maxes[p] == numbers["max_activation"]
            mean = pair_sums[p] / arrays.pair_counts[p]
            assert mean == pytest.approx(numbers["mean_activation"], rel=1e-6)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_tokens=st.integers(1, 120),
    k=st.integers(1, 5),
    d_sae=st.integers(5, 40),
    num_rows=st.integers(1, 8),
)
def test_the_index_agrees_with_brute_force(
    seed: int, num_tokens: int, k: int, d_sae: int, num_rows: int
) -> None:
    case = random_case(seed, num_tokens=num_tokens, k=k, d_sae=d_sae, num_rows=num_rows)
    with tempfile.TemporaryDirectory() as folder:
        assert_agrees(arrays_of(build(Path(folder), case)), case)


def test_sorting_in_small_ranges_and_chunks_gives_the_same_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(3)
    whole = build(tmp_path / "whole", case)
    monkeypatch.setattr(invert, "CHUNK_ENTRIES", 37)
    monkeypatch.setattr(codes_module, "ENCODE_CHUNK_TOKENS", 11)
    in_pieces = build(tmp_path / "pieces", case)
    fired = np.diff(arrays_of(in_pieces).latent_starts)
    invert.invert_by_latent(in_pieces, fired, check_stop=lambda: None, max_entries=50)
    size = len(arrays_of(whole).token_starts) - 1
    invert.invert_by_token(in_pieces, size, check_stop=lambda: None, max_entries=50)
    invert.rank_tokens_by_latent(in_pieces, check_stop=lambda: None, max_entries=50)
    for file in whole.glob("*.npy"):
        assert file.read_bytes() == (in_pieces / file.name).read_bytes(), file.name


def test_entries_are_ordered_as_one_sort_of_all_keys_orders_them(tmp_path: Path) -> None:
    case = random_case(9, num_tokens=400, k=5, d_sae=70)
    arrays = arrays_of(build(tmp_path, case))
    positions, places = np.nonzero(arrays.acts)
    latents, acts = arrays.indices[positions, places], arrays.acts[positions, places]
    order = np.lexsort((positions, -acts.astype(np.float64), latents))
    assert np.array_equal(arrays.latent_positions, positions[order])
    assert np.array_equal(arrays.latent_acts, acts[order])
    assert np.array_equal(arrays.fired, np.bincount(latents, minlength=70))


@pytest.mark.parametrize("max_entries", [20, 150, 10**6])
def test_codes_and_pairs_are_read_once_however_little_is_sorted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_entries: int
) -> None:
    folder = build(tmp_path, random_case(3, num_tokens=200, k=4, d_sae=30))
    arrays = arrays_of(folder)
    read: dict[str, int] = {"deal_codes": 0, "deal_pairs": 0}

    def count(name: str) -> None:
        deal = getattr(grouping, name)

        def counted(first, second, third, *rest) -> None:
            of_tokens = slice(first, second)  # of deal_pairs
            read[name] += first.size if name == "deal_codes" else np.diff(third)[of_tokens].sum()
            deal(first, second, third, *rest)

        monkeypatch.setattr(grouping, name, counted)

    for name in read:
        count(name)
    monkeypatch.setattr(invert, "CHUNK_ENTRIES", 37)
    limits = {"check_stop": lambda: None, "max_entries": max_entries}
    invert.invert_by_latent(folder, arrays.fired, **limits)
    invert.rank_tokens_by_latent(folder, **limits)
    assert read == {"deal_codes": arrays.indices.size, "deal_pairs": len(arrays.pair_latents)}


@pytest.mark.parametrize(("rank_bits", "value_bits"), [(16, 46), (32, 32), (16, 20)])
def test_a_part_has_no_more_latents_than_a_key_can_number(
    tmp_path: Path, rank_bits: int, value_bits: int
) -> None:
    """4 latents, 1, and any number; the entries of latent j are its numbers as ranks and values."""
    rng = np.random.default_rng(0)
    latents = rng.integers(0, 23, 500)
    ranks = rng.integers(0, 2**rank_bits, 500, dtype=np.uint64)
    starts = invert.group_bounds(np.bincount(latents, minlength=23))
    largest: list[int] = []

    def deal(made: parts.Parts) -> Iterator[parts.Dealt]:
        largest.append(int(np.diff(np.append(made.first, 23)).max()))
        for a in range(0, 500, 60):
            here = latents[a : a + 60]
            order = np.argsort(made.of[here], kind="stable")
            numbers = (here - made.first[made.of[here]]).astype(np.uint64)
            values = np.arange(a, a + len(here), dtype=np.uint64)
            keys = (numbers << np.uint64(rank_bits)) | ranks[a : a + 60]
            keys = (keys << np.uint64(value_bits)) | values
            bounds = np.searchsorted(made.of[here][order], np.arange(len(made.first) + 1))
            yield parts.Dealt(keys[order], bounds)

    bits = (rank_bits, value_bits)
    sorted_ = np.concatenate(list(parts.grouped(tmp_path, starts, deal, bits, lambda: None, 10**6)))
    order = np.lexsort((np.arange(500), ranks, latents))
    assert np.array_equal(sorted_ & np.uint64(2**32 - 1), order)
    assert np.array_equal(sorted_ >> np.uint64(32), ranks[order])
    assert largest[0] <= 2 ** (64 - rank_bits - value_bits)
    assert list(tmp_path.iterdir()) == []


def test_codes_of_varying_width_give_the_index_of_the_padded_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "ENCODE_CHUNK_TOKENS", 3)
    case = case_of_rows(
        [[5, 6, 7, 8], [6, 5, 5]], lambda n: {i: 1.0 + n - i for i in range(n % 5)}, d_sae=6
    )

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        where = x[:, 0].long()
        acts, indices = torch.from_numpy(case.acts)[where], torch.from_numpy(case.indices)[where]
        width = max(1, int((acts > 0).sum(1).max()))
        return acts[:, :width], indices[:, :width]

    padded = build(tmp_path / "padded", case)
    varying = build(tmp_path / "varying", case, encode=encode, k=None)
    assert_agrees(arrays_of(varying), case)
    for file in padded.glob("*.npy"):
        assert file.read_bytes() == (varying / file.name).read_bytes(), file.name
    assert open_index(varying)[0].k == 4


def test_more_than_65536_latents_use_32_bit_indices(tmp_path: Path) -> None:
    case = case_of_rows([[5, 6]], lambda n: {70_000: 1.0 + n}, d_sae=70_001)
    arrays = arrays_of(build(tmp_path, case))
    assert arrays.indices.dtype == np.uint32
    start, end = arrays.latent_starts[70_000:70_002]
    assert arrays.latent_positions[start:end].tolist() == [1, 0]


def test_exactly_65536_latents_use_16_bit_indices(tmp_path: Path) -> None:
    case = case_of_rows([[5, 6]], lambda n: {65_535: 1.0 + n}, d_sae=65_536)
    arrays = arrays_of(build(tmp_path, case))
    assert arrays.indices.dtype == np.uint16
    assert arrays.latent_starts[-2:].tolist() == [0, 2]


def test_an_index_in_which_nothing_fires_can_be_read(tmp_path: Path) -> None:
    case = case_of_rows([[5, 6, 7]], lambda _: {0: 0.0}, d_sae=3)
    index = built(tmp_path, case)
    assert [row.state for row in index.features().items] == ["dead"] * 3
    assert index.feature(1).contexts == []


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokens"):
        build(tmp_path, random_case(0), activations=torch.empty(0, 1))


def test_the_manifest_and_the_record_describe_the_index(tmp_path: Path) -> None:
    case = random_case(1, num_tokens=90, k=3, d_sae=20)
    calls: dict[str, object] = {}
    with CorpusEncoder(
        tmp_path / "codes",
        lambda x: (torch.ones(len(x), 3), torch.arange(3).expand(len(x), 3)),
        d_sae=20,
        k=3,
        device=torch.device("cpu"),
    ) as encoder:
        encoder.add(torch.zeros(90, 2))
        codes = encoder.finish()
    record = build_index(
        RunFolder(tmp_path),
        step=40,
        tokens=12_345,
        corpus=IndexCorpus(codes, case.token_ids, case.row_starts),
        W_dec=torch.eye(20, D_IN),
        tokenizer=byte_level_tokenizer(),
        vocab_size=byte_level_tokenizer().get_vocab_size(),
        write_sae=lambda path: calls.update(path=path.name),
    )
    assert (record.step, record.tokens, record.index_tokens, record.final) == (
        40,
        12_345,
        90,
        False,
    )
    assert record.seconds > 0
    assert calls == {"path": "sae.safetensors"}
    index = FeatureIndex.open(RunFolder(tmp_path).feature_index(40))
    assert (index.step, index.tokens, index.num_tokens) == (40, 12_345, 90)
    assert (index.d_sae, index.k, index.final) == (20, 3, False)
    assert index.created_at.tzinfo is not None


def test_the_folder_contains_the_sae_and_the_tokenizer(tmp_path: Path) -> None:
    weights = {"b_dec": torch.arange(3.0)}
    folder = build(tmp_path, random_case(0), write_sae=lambda path: save_file(weights, path))
    assert torch.equal(load_file(folder / "sae.safetensors")["b_dec"], weights["b_dec"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab() == byte_level_tokenizer().get_vocab()


def test_logits_are_the_decoder_rows_times_the_unembedding(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    size = byte_level_tokenizer().get_vocab_size()
    W_dec = torch.randn(30, D_IN, generator=generator)
    unembed = torch.randn(size, D_IN, generator=generator)
    folder = build(tmp_path, random_case(2), W_dec=W_dec, unembed=unembed, final=True)
    logits = FeatureIndex.open(folder).feature(11).logits
    assert logits is not None
    expected = [(sum((W_dec[11] * unembed[t]).tolist()), t) for t in range(size)]
    lowest, highest = sorted(expected)[:10], sorted(expected, reverse=True)[:10]
    assert [item.id for item in logits.negative] == [t for _, t in lowest]
    assert [item.id for item in logits.positive] == [t for _, t in highest]
    assert [i.value for i in logits.positive] == pytest.approx([v for v, _ in highest], rel=1e-4)


def test_neighbours_are_the_decoder_rows_with_the_highest_cosine(tmp_path: Path) -> None:
    W_dec = torch.randn(30, D_IN, generator=torch.Generator().manual_seed(4)) * 3
    folder = build(tmp_path, random_case(2), W_dec=W_dec, final=True)
    index = FeatureIndex.open(folder)
    neighbours = index.feature(8, labels={3: "a label"}, stars={3}).neighbours
    assert neighbours is not None
    cosines = torch.cosine_similarity(W_dec[8][None], W_dec).tolist()
    expected = sorted((i for i in range(30) if i != 8), key=lambda i: -cosines[i])[:10]
    assert [n.index for n in neighbours] == expected
    assert [n.cosine for n in neighbours] == pytest.approx([cosines[i] for i in expected], abs=1e-5)
    assert {n.index: n.label for n in neighbours}.get(3, "a label") == "a label"
    for near in neighbours:
        row = index.row(near.index, {}, {3})
        assert (near.top_tokens, near.starred) == (row.top_tokens, near.index == 3)


def test_an_sae_of_one_latent_has_no_neighbours(tmp_path: Path) -> None:
    case = case_of_rows([[5]], lambda _: {0: 1.0}, d_sae=1)
    assert built(tmp_path, case, final=True).feature(0).neighbours == []


def test_a_snapshot_during_training_has_neither_logits_nor_neighbours(tmp_path: Path) -> None:
    unembed = torch.randn(byte_level_tokenizer().get_vocab_size(), D_IN)
    feature = built(tmp_path, random_case(2), unembed=unembed).feature(8)
    assert feature.logits is None
    assert feature.neighbours is None


class _StoppedError(Exception):
    pass


def test_an_abort_at_any_check_leaves_no_files(tmp_path: Path) -> None:
    case = random_case(5)
    unembed = torch.randn(byte_level_tokenizer().get_vocab_size(), D_IN)
    checks = 0

    def count() -> None:
        nonlocal checks
        checks += 1

    build(tmp_path / "whole", case, unembed=unembed, final=True, check_stop=count)
    assert checks >= 8

    for stop_at in range(1, checks + 1):
        seen = 0

        def stop(stop_at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                raise _StoppedError

        folder = tmp_path / str(stop_at)
        with pytest.raises(_StoppedError):
            build(folder, case, unembed=unembed, final=True, check_stop=stop)
        assert list((folder / "features").iterdir()) == []


def test_a_new_index_replaces_the_old_one(tmp_path: Path) -> None:
    build(tmp_path, random_case(1, num_tokens=50))
    assert built(tmp_path, random_case(2, num_tokens=60)).num_tokens == 60
    assert [p.name for p in (tmp_path / "features").iterdir()] == ["7"]
