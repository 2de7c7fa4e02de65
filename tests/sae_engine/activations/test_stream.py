"""The shuffled stream is a permutation of the activations in reading order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_engine.activations import heldout, stream
from sae_engine.activations.feed import TextFeed
from sae_engine.activations.heldout import HeldoutText, num_rows_holding
from sae_engine.activations.stream import ActivationStream, ModelSource, SourceCursor, extract
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import DataConfig, ModelConfig, RunConfig
from sae_engine.text.order import shuffled_rows
from sae_engine.text.packing import Cursor, Packing, training_rows
from tests.sae_engine.text.heldout_text import heldout_rows

CTX = 16
DATA = DataConfig(ctx_len=CTX)


@pytest.fixture(scope="module")
def model(model_folders) -> LanguageModel:
    return LanguageModel.load(ModelConfig(name=str(model_folders["gemma2"]), layer=1))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "TOKENS_PER_BLOCK", 8 * CTX)
    monkeypatch.setattr(stream, "TOKENS_PER_FORWARD", 4 * CTX)
    monkeypatch.setattr(heldout, "TOKENS_PER_FORWARD", 4 * CTX)


def packing_of(model: LanguageModel) -> Packing:
    return Packing(model.tokenizer, CTX, model.bos_id, model.eos_id)


def stream_of(
    model: LanguageModel, check_stop=lambda: None, pool_rows: int = 1, **settings
) -> ActivationStream:
    settings = {"batch_size": 50, "seed": 0} | settings
    packing = packing_of(model)

    def open_source(cursor: SourceCursor) -> ModelSource:
        rows = shuffled_rows(DATA, packing, cursor, pool_rows=pool_rows)
        return ModelSource(model, rows, check_stop)

    return ActivationStream(open_source, **settings)


def next_of(stream: ActivationStream) -> torch.Tensor:
    (batch,) = next(stream)
    return batch


def as_counter(vectors: torch.Tensor) -> Counter[bytes]:
    """A multiset, because rows that begin with the same token give equal vectors."""
    return Counter(v.tobytes() for v in vectors.numpy())


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def test_the_stream_yields_every_activation_of_a_block_once_and_no_special_token(model):
    ids = torch.from_numpy(training_rows(DATA, packing_of(model)).take(16))
    ordinary = (ids != 0) & (ids != 1) & (ids != 2)
    plain = model.activations(ids)[ordinary]
    first_block = int(ordinary[:8].sum())
    stream = stream_of(model, batch_size=1)
    # Windows 0 and 1 hold all of block 0 and half of block 1.
    two_windows = first_block + (len(plain) - first_block) // 2
    seen = torch.cat([next_of(stream) for _ in range(two_windows)])
    whole, given = as_counter(plain), as_counter(seen)
    assert as_counter(plain[:first_block]) <= given <= whole
    bos = model.activations(ids)[:, 0]
    assert distances(bos, seen).min() > 1e-2


def test_the_stream_is_shuffled(model):
    ids = torch.from_numpy(training_rows(DATA, packing_of(model)).take(8))
    (plain,) = extract(model, ids)
    batch = next_of(stream_of(model, batch_size=40))
    order = distances(batch, plain).argmin(dim=1).numpy()
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.5
    assert len(set(order // CTX)) >= 6


def test_the_same_seed_gives_the_same_stream_and_another_seed_another(model):
    one, same, other = stream_of(model), stream_of(model), stream_of(model, seed=1)
    for _ in range(6):
        batch = next_of(one)
        assert torch.equal(batch, next_of(same))
        assert not torch.equal(batch, next_of(other))


@pytest.mark.parametrize("pool_rows", [1, 21])  # in order; in pools that end inside blocks
@pytest.mark.parametrize("batches_before", [0, 1, 2, 3, 5, 9])
def test_from_any_state_the_same_batches_follow(model, batches_before, pool_rows):
    stream = stream_of(model, pool_rows=pool_rows)
    for _ in range(batches_before):
        next(stream)
    state = stream.state
    expected = [next_of(stream) for _ in range(6)]
    again = stream_of(model, state=state, pool_rows=pool_rows)
    for batch in expected:
        assert torch.equal(next_of(again), batch)


def test_a_batch_interrupted_by_a_stop_is_not_lost(model):
    class StopError(Exception):
        pass

    armed = False

    def check() -> None:
        if armed:
            raise StopError

    stream, twin = stream_of(model, check_stop=check), stream_of(model)
    for _ in range(2):
        next(stream)
        next(twin)
    armed = True
    while True:
        before = stream.state
        try:
            next(stream)
        except StopError:
            break
        next(twin)
    assert stream.state == before
    again = stream_of(model, state=stream.state)
    assert torch.equal(next_of(again), next_of(twin))


def test_held_out_activations_are_those_of_the_ordinary_tokens_in_order(model, tmp_path: Path):
    ids = heldout_rows(DATA, packing_of(model), 500)
    held = HeldoutText(model, ids, 400, tmp_path / "held")
    ordinary = ~np.isin(held.ids, [0, 1, 2])
    assert held.num_tokens == ordinary.sum()
    assert 400 <= held.num_tokens < 400 + CTX
    assert np.array_equal(held.token_ids, held.ids[ordinary])
    part = held.read(0, 100)
    assert len(part) in held.row_starts
    assert 100 <= len(part) < 100 + CTX
    whole = held.read(0, 10**6)
    expected = model.activations(torch.from_numpy(held.ids))[torch.from_numpy(ordinary)]
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(part, expected[: len(part)])
    lengths = np.diff(held.row_starts)
    assert np.array_equal(lengths, ordinary.sum(axis=1))
    numbers = np.arange(ordinary.size).reshape(ordinary.shape)[ordinary]
    follows = {n for n in range(1, len(numbers)) if numbers[n] == numbers[n - 1] + 1}
    assert set(held.text_breaks.tolist()) == set(range(1, len(numbers))) - follows
    assert set(held.text_breaks) > set(held.row_starts[1:-1])  # separators of documents too
    held.close()
    assert not (tmp_path / "held").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_held_out_activations_are_stored_as_the_model_computes_them(
    model_folders, tmp_path: Path, dtype: str
):
    config = ModelConfig.model_validate(
        {"name": str(model_folders["llama"]), "layer": 1, "dtype": dtype}
    )
    low = LanguageModel.load(config)
    held = HeldoutText(low, heldout_rows(DATA, packing_of(low), 80), 60, tmp_path / "held")
    at = torch.from_numpy(held.at)
    expected = low.activations(torch.from_numpy(held.ids))[at]
    assert held.read(0, 60).dtype == getattr(torch, dtype)
    torch.testing.assert_close(held.read(0, 60), expected, rtol=0, atol=0)
    [part] = next(held.parts(60))
    assert part.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("num_stored", [1, 100, 130, 400])
def test_held_out_activations_that_are_not_stored_are_read_again_in_the_same_calls(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_stored: int
):
    monkeypatch.setattr(heldout, "TOKENS_PER_FORWARD", 4 * CTX)
    calls: list[int] = []

    def counted(*arguments, **more):
        calls.append(len(arguments[1]))
        return extract(*arguments, **more)

    monkeypatch.setattr(heldout, "extract", counted)
    ids = heldout_rows(DATA, packing_of(model), 500)
    held = HeldoutText(model, ids, 400, tmp_path / "held", num_stored)
    whole = HeldoutText(model, ids, 400, tmp_path / "whole").read(0, 400)
    stored_calls = -(-num_rows_holding(num_stored, held.row_starts) // 4)
    assert held.num_stored == held.row_starts[min(4 * stored_calls, len(held.ids))]
    size = (tmp_path / "held" / "hook_0").stat().st_size
    assert size == held.num_stored * model.d_in * 4
    assert torch.equal(held.read(0, num_stored), whole[: len(held.read(0, num_stored))])
    for again, wanted in ((0, 400), (stored_calls, 10**6), (stored_calls, 210)):
        calls.clear()
        parts = [part for [part] in held.parts(wanted)]
        expected = whole[: held.row_starts[num_rows_holding(wanted, held.row_starts)]]
        assert torch.equal(torch.cat(parts), expected)
        assert max(map(len, parts)) <= 4 * CTX
        if again:
            num_calls = -(-num_rows_holding(wanted, held.row_starts) // 4)
            assert len(calls) == max(0, num_calls - stored_calls)


@pytest.mark.parametrize("blocks", [0.5, 1, 3])
def test_rows_are_shuffled_before_the_model_only_if_more_than_a_block(model_folders, blocks):
    data = DATA.model_copy(update={"shuffle_tokens": int(blocks * 8 * CTX)})
    name = str(model_folders["gemma2"])
    feed = TextFeed([RunConfig(model=ModelConfig(name=name, layer=1), data=data)])
    source = feed.open_source(Cursor())
    source.next_block()
    in_order = training_rows(data, packing_of(feed.model)).take(8)
    assert np.array_equal(source.last.ids, in_order) == (blocks <= 1)
