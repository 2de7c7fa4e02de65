"""Selection of the TopK latents in Triton against sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_engine.kernels.reference import select_topk
from tests.sae_engine.kernels.test_triton_kernels import DEVICE, batch, gpu, triton_select


def expected_choice(pre: Tensor, norms: Tensor, k: int) -> list[list[int]]:
    """The k best latents of each row, ascending; of equal scores the lowest indices."""
    scores = (pre * norms).tolist()
    order = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in scores]
    return [sorted(row) for row in order]


def check_selection(pre: Tensor, norms: Tensor, k: int, **options: int) -> None:
    codes = triton_select.select(pre, torch.zeros_like(norms), norms, k, **options)
    assert codes.indices.sort(1).values.tolist() == expected_choice(pre, norms, k)
    assert torch.equal(codes.acts, pre.gather(1, codes.indices.long()).relu())
    assert codes.kept.tolist() == (codes.acts > 0).sum(1).tolist()
    for acts, kept in zip(codes.acts.tolist(), codes.kept.tolist(), strict=True):
        assert all(act > 0 for act in acts[:kept])


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 40), st.data(), st.sampled_from([1, 8, 1024]), st.integers(1, 2), st.booleans()
)
def test_selection_is_exact_and_prefers_the_lowest_of_equal_scores(
    d_sae: int, data: st.DataObject, min_groups: int, n: int, has_ties: bool
):
    k = data.draw(st.integers(1, d_sae))
    values = st.integers(-2, 2) if has_ties else st.floats(-1e3, 1e3, width=32)
    rows = data.draw(
        st.lists(st.lists(values, min_size=d_sae, max_size=d_sae), min_size=n, max_size=n)
    )
    norms = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=d_sae, max_size=d_sae))
    pre = torch.tensor(rows, dtype=torch.float32, device=DEVICE) + 0.0  # no negative zeros
    check_selection(pre, torch.tensor(norms, device=DEVICE), k, min_groups=min_groups)


@pytest.mark.parametrize(("d_sae", "k"), [(1, 1), (37, 37), (300, 5), (2500, 40), (3000, 700)])
def test_selection_works_at_widths_that_are_not_powers_of_two(d_sae: int, k: int):
    generator = torch.Generator().manual_seed(d_sae)
    pre = torch.randn(2, d_sae, generator=generator).to(DEVICE)
    norms = torch.rand(d_sae, generator=generator).to(DEVICE) + 0.5
    check_selection(pre, norms, k)
    reference_acts, reference = select_topk(pre, norms, k)
    codes = triton_select.select(pre, torch.zeros_like(norms), norms, k)
    assert torch.equal(codes.indices.sort(1).values, reference.int().sort(1).values)
    assert torch.equal(codes.acts.sort(1).values, reference_acts.sort(1).values)


def test_a_row_without_positive_pre_activations_has_no_active_latents():
    pre = -batch(0, 3, 50).abs() - 0.1
    codes = triton_select.select(pre, torch.zeros_like(pre[0]), torch.ones_like(pre[0]), 5)
    assert codes.kept.tolist() == [0, 0, 0]
    assert not codes.acts.any()
    assert all(len(set(row)) == 5 for row in codes.indices.tolist())


def test_selection_finds_the_best_latents_if_all_are_in_one_group():
    pre = batch(1, 1, 200) - 10
    pre[:, ::8] += 20  # 25 in one of 8 groups, more than a row of candidates holds
    check_selection(pre, torch.ones_like(pre[0]), 3, min_groups=8)


@pytest.mark.parametrize("value", [2.0, 0.0, -1.0])
def test_selection_takes_the_first_of_many_equal_scores(value: float):
    """More of them than a row of candidates holds."""
    pre = torch.full((1, 50), value, device=DEVICE)
    pre[0, 30] = 3.0
    check_selection(pre, torch.ones_like(pre[0]), 6, min_groups=1)


def test_the_bias_takes_part_in_selection():
    dots, bias = batch(2, 3, 40), batch(3, 1, 40)[0]
    norms = torch.ones_like(bias)
    codes = triton_select.select(dots, bias, norms, 4)
    assert codes.indices.sort(1).values.tolist() == expected_choice(dots + bias, norms, 4)


def test_selection_ignores_nan():
    pre = batch(4, 3, 40)
    pre[0] = float("nan")
    pre[1, ::2] = float("nan")
    codes = triton_select.select(pre, torch.zeros_like(pre[0]), torch.ones_like(pre[0]), 4)
    assert bool(codes.acts.isfinite().all())
    assert codes.indices[1:2].sort(1).values.tolist() == expected_choice(
        pre[1:2].nan_to_num(-1e9), torch.ones_like(pre[0]), 4
    )


@gpu
@pytest.mark.parametrize(("d_sae", "k"), [(16384, 64), (65536, 32)])
def test_selection_is_exact_at_a_realistic_size_on_a_gpu(d_sae: int, k: int):
    pre = batch(0, 64, d_sae)
    pre[:8, ::3] = 2.0  # many ties
    pre[8:16] = -pre[8:16].abs()
    norms = torch.rand(d_sae, device=DEVICE) + 0.5
    norms[::3] = 1.0
    check_selection(pre, norms, k)
    check_selection(pre, norms, 1152)
