"""Shuffled and mixed rows against the rows of each dataset in reading order."""

import json
from pathlib import Path
from weakref import ReferenceType, ref

import numpy as np
import pytest

from sae_engine.errors import UserError
from sae_engine.schema.config import DataConfig
from sae_engine.text import order as order_module
from sae_engine.text.order import (
    RowCursor,
    Rows,
    ShuffledRows,
    shuffled_rows,
)
from sae_engine.text.packing import Cursor, Packing, count_tokens, training_rows
from sae_engine.training.checkpoint import cursor_from_json
from tests.sae_engine.text.heldout_text import heldout_rows, mixed_heldout_rows
from tests.sae_engine.text.test_packing import BOS, EOS, TOKENIZER

CTX = 16
PACKING = Packing(TOKENIZER, CTX, BOS, EOS)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"document {n} says {n * n} and {n + 7}" for n in range(60)))
    return DataConfig(dataset=str(path), ctx_len=CTX)


NUM_DOCUMENTS = (60, 150, 400)
"""Documents of the datasets in a mixture, so that the first soon begins again."""


def mixture(folder: Path, *weights: float) -> DataConfig:
    """Datasets whose documents all begin with their number."""
    parts = []
    for number, weight in enumerate(weights):
        path = folder / f"{number}.jsonl"
        lines = [f"{number} {n} " * (2 + n % 5) for n in range(NUM_DOCUMENTS[number])]
        path.write_text("\n".join(json.dumps({f"column{number}": line}) for line in lines))
        part = {"dataset": str(path), "weight": weight, "text_column": f"column{number}"}
        parts.append(part)
    return DataConfig.model_validate({"ctx_len": CTX, "mixture": parts})


def shuffled(config: DataConfig, pool_rows: int, cursor: Cursor | RowCursor = Cursor()) -> Rows:  # noqa: B008
    return shuffled_rows(config, PACKING, cursor, pool_rows=pool_rows)


def plain(config: DataConfig, count: int) -> np.ndarray:
    return training_rows(config, PACKING).take(count)


def as_sorted(rows: np.ndarray) -> list[list[int]]:
    return sorted(rows.tolist())


@pytest.mark.parametrize("pool_rows", [2, 7, 20])
def test_every_pool_is_a_permutation_of_as_many_rows_in_reading_order(
    config: DataConfig, pool_rows: int
):
    rows = shuffled(config, pool_rows).take(40)
    expected = plain(config, 40)
    for first in range(0, 40 - pool_rows + 1, pool_rows):
        pool = slice(first, first + pool_rows)
        assert as_sorted(rows[pool]) == as_sorted(expected[pool])
    assert not np.array_equal(rows, expected)


def test_pools_have_orders_of_their_own(config: DataConfig):
    rows, expected = shuffled(config, 20).take(40).tolist(), plain(config, 40).tolist()
    orders = [[expected.index(row) - n for row in rows[n : n + 20]] for n in (0, 20)]
    assert orders[0] != orders[1]
    other = config.model_copy(update={"seed": 1})
    assert shuffled(other, 20).take(20).tolist() != rows[:20]


def test_without_a_pool_rows_stay_in_reading_order(config: DataConfig):
    assert np.array_equal(shuffled(config, 1).take(50), plain(config, 50))
    later = training_rows(config, PACKING)
    later.take(9)
    assert np.array_equal(shuffled(config, 1, later.cursor).take(20), plain(config, 29)[9:])


@pytest.fixture(params=["one dataset", "mixture"])
def any_config(request: pytest.FixtureRequest, config: DataConfig, tmp_path: Path) -> DataConfig:
    return config if request.param == "one dataset" else mixture(tmp_path, 5, 2, 1)


@pytest.mark.parametrize("pool_rows", [1, 6, 300])
@pytest.mark.parametrize("read", [0, 1, 5, 6, 13, 200])
def test_from_any_cursor_the_same_rows_follow(any_config: DataConfig, pool_rows: int, read: int):
    config = any_config
    rows = shuffled(config, pool_rows)
    for size in (read // 2, read - read // 2):
        if size:
            rows.take(size)
    cursor = cursor_from_json(json.loads(json.dumps(rows.cursor)))
    assert cursor == rows.cursor
    expected = rows.take(30)
    assert np.array_equal(shuffled(config, pool_rows, cursor).take(30), expected)


def test_a_pool_ends_where_the_text_begins_again(config: DataConfig):
    num_rows = len(training_rows(config, PACKING, num_epochs=1).take(10**6))
    assert num_rows * (CTX - 1) == count_tokens(config, PACKING, [BOS])
    tokens = plain(config, 3 * num_rows)[:, 1:].ravel().tolist()
    again = range(num_rows * (CTX - 1), len(tokens))
    per_epoch = next(n for n in again if tokens[n : n + 50] == tokens[:50])
    # The row in which one epoch ends and the next begins belongs to the first.
    end = 2 * per_epoch // (CTX - 1) + 1
    rows, expected = shuffled(config, 10**6).take(end), plain(config, end)
    assert as_sorted(rows[: num_rows + 1]) == as_sorted(expected[: num_rows + 1])
    assert as_sorted(rows[num_rows + 1 :]) == as_sorted(expected[num_rows + 1 :])


def filling_its_rows(folder: Path) -> DataConfig:
    """Training text that fills rows to the last."""
    path = folder / "text.txt"
    config = DataConfig(dataset=str(path), ctx_len=CTX)
    for num_documents in range(60, 200):
        path.write_text("\n\n".join(f"document {n} ends" for n in range(num_documents)))
        if count_tokens(config, PACKING._replace(ctx_len=2), [BOS]) % (CTX - 1) == 0:
            return config
    raise AssertionError("no number of documents fills its rows")


def test_a_pool_holds_no_row_of_the_next_epoch_though_the_text_fills_its_rows(tmp_path: Path):
    """No row has tokens of two epochs."""
    config = filling_its_rows(tmp_path)
    one_epoch = training_rows(config, PACKING, num_epochs=1).take(10**6)
    for pool_rows in (len(one_epoch) - 3, 10**6):
        rows = shuffled(config, pool_rows)
        for _ in range(3):
            assert as_sorted(rows.take(len(one_epoch))) == as_sorted(one_epoch)
            again = shuffled(config, pool_rows, rows.cursor)
            assert again.cursor == rows.cursor


@pytest.mark.parametrize("sizes", [(7, 33), (17, 8, 15), (60,)])
def test_a_pool_is_freed_before_the_next_is_read(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
):
    pools: list[ReferenceType[np.ndarray]] = []
    read = ShuffledRows._next_pool

    def next_pool(rows: ShuffledRows) -> np.ndarray:
        assert [pool() for pool in pools] == [None] * len(pools)
        pool = read(rows)
        pools.append(ref(pool))
        return pool

    monkeypatch.setattr(ShuffledRows, "_next_pool", next_pool)
    rows = shuffled(config, 20)
    for size in sizes:
        rows.take(size)
    assert len(pools) > 1


def sources_of(rows: np.ndarray, config: DataConfig, split=training_rows) -> list[int]:
    """The dataset of each row: the one whose next row it is; raises if it is none's."""
    own = [iter(one) for one in (split(c, PACKING) for c in config.datasets)]
    waiting = [next(rows_of_one).tolist() for rows_of_one in own]
    found: list[int] = []
    for row in rows.tolist():
        number = waiting.index(row)
        found.append(number)
        waiting[number] = next(own[number], np.empty(0)).tolist()
    return found


@pytest.mark.parametrize("weights", [(1, 1), (5, 2, 1), (0.013, 0.007), (1, 100)])
def test_a_mixture_reads_each_dataset_in_order_and_by_weight(tmp_path: Path, weights):
    config = mixture(tmp_path, *weights)
    found = sources_of(shuffled(config, 1).take(400), config)
    for num_rows in (1, 10, 57, 400):
        for number, weight in enumerate(weights):
            expected = num_rows * weight / sum(weights)
            assert abs(found[:num_rows].count(number) - expected) <= len(weights) - 1


def test_a_dataset_that_ends_begins_again_with_the_same_weight(tmp_path: Path):
    config = mixture(tmp_path, 3, 1)
    rows = shuffled(config, 1)
    found = sources_of(rows.take(400), config)
    assert rows.cursor.starts[0].epoch > 1
    assert rows.cursor.starts[1].epoch == 0
    assert found.count(0) == rows.cursor.counts[0] == 300


def test_a_pool_holds_the_rows_of_the_mixture(tmp_path: Path):
    config = mixture(tmp_path, 1, 2)
    in_order = shuffled(config, 1).take(20)
    assert as_sorted(shuffled(config, 20).take(20)) == as_sorted(in_order)


@pytest.mark.parametrize("weights", [(1, 1), (5, 2, 1), (1, 20)])
def test_pools_of_a_mixture_are_full_though_datasets_begin_again(tmp_path: Path, weights):
    config = mixture(tmp_path, *weights)
    rows, in_order = shuffled(config, 150), shuffled(config, 1)
    for _ in range(5):
        pool, expected = rows.take(150), in_order.take(150)
        assert as_sorted(pool) == as_sorted(expected)
        moved = np.abs([expected.tolist().index(row) - n for n, row in enumerate(pool.tolist())])
        assert moved.mean() > 20
    assert in_order.cursor.starts[0].epoch > 2 or weights[0] < weights[1]


@pytest.mark.parametrize("given", [0, 1, 7])
@pytest.mark.parametrize("weights", [(5, 1), (1,)])
def test_a_pool_that_an_earlier_version_began_ends_as_it_began(
    tmp_path: Path, weights: tuple[int, ...], given: int
):
    """Its cursors have three parts, and it ended with a row after which a dataset begins again."""
    config = mixture(tmp_path, *weights)
    in_order, pool = shuffled(config, 1), []
    start = in_order.cursor
    while not any(cursor.epoch for cursor in in_order.cursor.starts):
        pool.append(in_order.take(1)[0])
    seed = np.random.SeedSequence((config.seed, 0, 2))
    order = np.argsort(seed.generate_state(len(pool), np.uint64), kind="stable")
    cursor = cursor_from_json(json.loads(json.dumps([start.starts, start.counts, given])))
    rows = shuffled(config, 300, cursor)
    assert np.array_equal(rows.take(5), np.stack(pool)[order][given : given + 5])
    rows = shuffled(config, 300, cursor_from_json(json.loads(json.dumps(rows.cursor))))
    assert np.array_equal(rows.take(len(pool) - given - 5), np.stack(pool)[order][given + 5 :])
    following = rows.cursor
    assert following == in_order.cursor
    assert np.array_equal(rows.take(9), shuffled(config, 300, following).take(9))


def test_held_out_rows_are_mixed_as_training_rows_until_a_dataset_has_no_more(tmp_path: Path):
    config = mixture(tmp_path, 1, 2)
    each = [heldout_rows(one, PACKING, 10**6) for one in config.datasets]

    def read(one: DataConfig, packing: Packing) -> list[np.ndarray]:
        return list(heldout_rows(one, packing, 10**6))

    few = mixed_heldout_rows(config, PACKING, 6 * (CTX - 1))
    assert sorted(sources_of(few, config, read)) == [0, 0, 1, 1, 1, 1]
    everything = mixed_heldout_rows(config, PACKING, 10**6)
    assert as_sorted(everything) == as_sorted(np.concatenate(each))
    assert sources_of(everything, config, read)[:3].count(0) == 1


@pytest.mark.parametrize("weights", [(1, 1), (1, 2), (5, 2, 1), (0.013, 0.3, 0.007), (90, 1, 1)])
def test_more_held_out_tokens_only_add_rows_at_the_end(tmp_path: Path, weights):
    config = mixture(tmp_path, *weights)
    longest = mixed_heldout_rows(config, PACKING, 10**6)
    for num_rows in (1, 2, 5, 11, 12, 40, len(longest)):
        rows = mixed_heldout_rows(config, PACKING, num_rows * (CTX - 1))
        assert np.array_equal(rows, longest[:num_rows])


@pytest.mark.parametrize("excluded", [[BOS], [BOS, EOS], [BOS, EOS, 9, 10, 11]])
def test_excluded_tokens_do_not_count_as_held_out(tmp_path: Path, excluded: list[int]):
    """Of short documents, many tokens are eos."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{n} is short" for n in range(3000)))
    config = DataConfig(dataset=str(path), ctx_len=CTX)
    everything = mixed_heldout_rows(config, PACKING, 10**6, excluded)
    found = (~np.isin(everything, excluded)).sum(axis=1).cumsum()
    for wanted in (1, 50, int(found[-1]) - 1, int(found[-1])):
        rows = mixed_heldout_rows(config, PACKING, wanted, excluded)
        assert np.array_equal(rows, everything[: np.searchsorted(found, wanted) + 1])


def test_held_out_text_of_special_tokens_only_is_refused(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{n} is short" for n in range(300)))
    config = DataConfig(dataset=str(path), ctx_len=CTX)
    with pytest.raises(UserError, match=r"text.txt' holds only special tokens"):
        mixed_heldout_rows(config, PACKING, 10, range(TOKENIZER.get_vocab_size()))


@pytest.mark.parametrize("block", [1, 40, 100])
def test_reading_held_out_rows_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
):
    """After every block of tokens, and at most once a row."""
    monkeypatch.setattr(order_module, "TOKENS_PER_BLOCK", block)
    wanted = 12 * (CTX - 1)
    parts = list(order_module.read_mixed_heldout(mixture(tmp_path, 1, 2), PACKING, wanted, [BOS]))
    counts = range(CTX - 1, wanted + 1, CTX - 1)
    assert parts == [(n, wanted, "tokens") for n in counts if n // block > (n - CTX + 1) // block]


def test_a_dataset_without_held_out_text_is_named(tmp_path: Path):
    config = mixture(tmp_path, 1, 1)
    (tmp_path / "0.jsonl").write_text(json.dumps({"column0": "only one document"}))
    with pytest.raises(UserError, match=r"'.*0\.jsonl' is too small"):
        mixed_heldout_rows(config, PACKING, 1000)
