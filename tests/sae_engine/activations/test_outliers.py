"""Which rows count as outliers, and what takes their place, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_engine.activations.outliers import (
    OutlierFilter,
    is_outlier,
    largest_norm,
    median_norm,
    ordinary_text,
    ordinary_tokens,
    replace_outliers,
)
from sae_engine.errors import UserError


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(lambda flags: not all(flags)))
def test_an_outlier_is_replaced_by_the_nearest_other_row_before_it(flags: list[bool]):
    n = len(flags)
    x = torch.arange(float(n))[:, None].repeat(1, 3)
    expected = [next(m for m in range(i, i - n, -1) if not flags[m]) % n for i in range(n)]
    replaced = replace_outliers(x, torch.tensor(flags))
    assert replaced[:, 0].int().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_limit_is_a_multiple_of_the_median_norm(dtype: torch.dtype):
    x = torch.zeros(5, 4, dtype=dtype)
    x[:, 1] = torch.tensor([1.0, 2.0, 3.0, 29.0, 31.0])
    limit = largest_norm(median_norm(x), 10)
    assert limit == 30
    assert is_outlier(x, limit).tolist() == [False, False, False, False, True]


def test_infinite_rows_are_outliers_but_nan_is_not_hidden():
    x = torch.tensor([[1.0], [math.inf], [math.nan]])
    assert is_outlier(x, 10).tolist() == [False, True, False]


@pytest.mark.parametrize(("median", "multiple"), [(1.0, None), (0.0, 10.0), (math.nan, 10.0)])
def test_without_a_multiple_or_a_median_nothing_is_an_outlier(median: float, multiple):
    assert largest_norm(median, multiple) == math.inf


@pytest.mark.parametrize("multiple", [None, 10.0, 50.0])
@pytest.mark.parametrize("factor", [75.0, 1e4])
def test_scale_and_variance_are_measured_on_typical_rows_only(multiple, factor: float):
    x = torch.randn(6000, 16)
    x[1234] *= factor
    kept = OutlierFilter(multiple).begin_(x)
    assert torch.equal(kept, torch.cat([x[:1234], x[1235:]]))


def test_a_batch_without_outliers_is_unchanged_bit_by_bit():
    x = torch.randn(500, 16)
    ordinary = OutlierFilter(10.0)
    assert torch.equal(ordinary.begin_(x), x)
    assert torch.equal(ordinary(x), x)
    assert ordinary.num_tokens == 0


def test_outliers_of_all_batches_are_counted_and_a_restored_filter_counts_on():
    x = torch.ones(8, 3)
    x[[0, 5]] *= 11
    ordinary = OutlierFilter(10.0)
    ordinary.begin_(x)
    assert ordinary(x).max() == 1
    again = OutlierFilter(10.0)
    again.restore_(ordinary.median_norm, ordinary.num_tokens)
    again(x)
    assert again.num_tokens == 4


class Tokens:
    """Held-out tokens of which every third of 10 is an outlier, in rows of 4, 3 and 3."""

    def __init__(self) -> None:
        self.values = torch.ones(10, 2) + torch.arange(10)[:, None] / 100
        self.values[::3] *= 100
        self.ids = None
        self.token_ids = np.arange(10, dtype=np.uint32) * 7
        self.row_starts = np.array([0, 4, 7, 10])
        self.text_breaks: np.ndarray | None = np.array([2, 9])
        self.num_tokens = 10

    def read(self, hook, num_tokens, check_stop=None):
        return self.values[: self.row_starts[1 + (num_tokens > 4) + (num_tokens > 7)]]

    def close(self) -> None: ...


def test_held_out_outliers_are_left_out_of_values_ids_and_rows():
    tokens = Tokens()
    found = ordinary_tokens(tokens, 0, 7, 10.0)
    kept = [1, 2, 4, 5]
    assert torch.equal(found.activations[:], tokens.values[kept])
    assert torch.equal(found.activations[1:3], tokens.values[[2, 4]])
    assert found.num_outliers == 3
    text = ordinary_text(tokens, 7, found.kept, 10.0)
    assert text.token_ids.tolist() == [7 * i for i in kept]
    assert text.row_starts.tolist() == [0, 2, 4]
    whole = ordinary_tokens(tokens, 0, 7, math.inf)
    assert torch.equal(whole.activations[:], tokens.values[:7])
    assert whole.num_outliers == 0


@pytest.mark.parametrize(
    ("breaks", "limit", "expected"),
    [
        ([2, 9], 10.0, [0, 1, 2, 4]),  # of tokens 1, 2, 4, 5, 7, 8; 0, 3, 6 and 9 are left out
        ([], 10.0, [0, 2, 4]),
        (None, 10.0, [0, 2, 4]),
        ([2, 9], math.inf, [2, 9]),
        (None, math.inf, None),
    ],
)
def test_text_breaks_where_outliers_are_left_out(
    breaks: list[int] | None, limit: float, expected: list[int] | None
):
    tokens = Tokens()
    tokens.text_breaks = None if breaks is None else np.array(breaks, np.int64)
    kept = ordinary_tokens(tokens, 0, 10, limit).kept
    found = ordinary_text(tokens, 10, kept, limit).text_breaks
    assert (None if found is None else found.tolist()) == expected


def test_held_out_activations_of_another_scale_are_refused():
    with pytest.raises(UserError, match=r"Every held-out activation has a norm above 0\.5, data"):
        ordinary_tokens(Tokens(), 0, 10, 0.5)
    with pytest.raises(UserError, match=r"Every held-out activation has a norm above 0\.5, data"):
        ordinary_text(Tokens(), 10, np.zeros(10, np.bool_), 0.5)
