"""What the compiled search relies on: its bounds hold and its integer products are exact."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_engine.kernels import memory
from sae_engine.kernels.cpu import candidates, products, search
from sae_engine.kernels.cpu.search import SEARCHES, Latents, Rounding, Search, Shadow
from sae_engine.kernels.cpu.step import CpuKernels

pytestmark = pytest.mark.usefixtures("two_threads")

needs_integers = pytest.mark.skipif(not products.HAS_INTEGERS, reason="this processor has no AVX2")


@pytest.mark.parametrize("how", SEARCHES[:-1])
@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 300), st.integers(0, 10_000), st.floats(0, 4))
def test_approximate_scores_stay_within_their_bounds(
    how: Search, d_in: int, seed: int, tail: float
):
    """Also for heavy-tailed rows, where one coordinate uses most of the range."""
    generator, n, d_sae = torch.Generator().manual_seed(seed), how.token_multiple, 32

    def heavy_tailed(count: int) -> Tensor:
        values, widths = (torch.randn(count, d_in, generator=generator) for _ in range(2))
        return values * (tail * widths).exp()

    rows, x = heavy_tailed(d_sae), heavy_tailed(n)
    rounding = Rounding.of(how, d_in)
    panels = memory.zeros((2, how.pairs(d_in), 16), np.int32)
    shadow = Shadow(panels, np.zeros(d_sae, np.float32), np.zeros(d_sae, np.float32))
    rounded = np.zeros((16, 2 * how.pairs(d_in)), np.int16)
    for j in range(d_sae):
        search.round_latent(j, rows[j].numpy(), rounding, shadow, rounded)
        if j % 16 == 15:
            search.write_panel(rounded, 16, panels[j // 16])
    tokens = search.round_tokens(x.numpy(), n, how, rounding)
    latents = Latents(shadow.scales, np.zeros(d_sae, np.float32), shadow.errors)
    scores, bounds = memory.zeros((n, d_sae)), memory.zeros((n, 2))
    find = search.tile_scores if how is Search.TILES else search.integer_scores
    find(tokens, panels, latents, memory.zeros((n * 32,), np.int32), scores, bounds)
    true = x.double() @ rows.double().T
    allowed = np.outer(tokens.errors, latents.errors)
    assert bool((np.abs(scores - true.numpy()) <= allowed).all())
    assert bool((bounds <= true.reshape(n, 2, 16).amax(2).numpy()).all())


@pytest.mark.parametrize("how", SEARCHES[:-1])
def test_bounds_are_narrow(how: Search):
    """For normal rows: 0.5% of the norms for bfloat16, 0.1% for integers."""
    x = torch.randn(how.token_multiple, 2304, generator=torch.Generator().manual_seed(0))
    rounding = Rounding.of(how, 2304)
    tokens = search.round_tokens(x.numpy(), len(x), how, rounding)
    relative = tokens.errors / x.norm(dim=1).numpy() * rounding.typical
    assert relative.max() < (0.005 if how is Search.TILES else 0.001)


@pytest.mark.parametrize("is_wide", [False] + [True] * products.HAS_WIDE_INTEGERS)
@needs_integers
def test_integer_products_are_exact(is_wide: bool):
    """Both widths, whichever this processor uses for its scores."""
    multiply = products.add_wide_products if is_wide else products.add_narrow_products
    n, pairs = (12, 7) if is_wide else (6, 7)
    random = np.random.default_rng(0)
    x = random.integers(-(2**15), 2**15, (n, 2 * pairs), np.int16)
    w = random.integers(-(2**12), 2**12, (pairs, 16, 2), np.int16)
    out = random.integers(-1000, 1000, (n, 16), np.int32)
    expected = out + np.einsum("rpi,pci->rc", x.reshape(n, pairs, 2).astype(int), w.astype(int))

    @numba.njit
    def run(x, w, out):
        multiply(
            np.uint64(x.ctypes.data), x.strides[0], np.uint64(w.ctypes.data), len(w),
            np.uint64(out.ctypes.data),
        )  # fmt: skip

    run(x, w, out)
    np.testing.assert_array_equal(out, expected)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32, allow_subnormal=False), min_size=1, max_size=60),
    st.integers(1, 70),
)
def test_at_least_k_values_reach_the_threshold_found_by_bisection(values: list[float], k: int):
    array = np.array(values, np.float32)
    threshold = candidates.reached_by(array, len(array), k)
    assert threshold >= 0
    reached = (array >= threshold).sum()
    if threshold > 0:
        assert reached >= k
    if reached > k:  # only values within the last bisection of the k-th
        assert threshold >= np.sort(array)[-k] - max(values) / 2**candidates.BISECTIONS * 1.001


@needs_integers
@pytest.mark.parametrize("d_in", [2, 16, 300, 2304, 9000])
def test_the_largest_integer_dot_product_does_not_overflow(d_in: int):
    """A row times itself, scaled to the largest norm, is the extreme case of Cauchy-Schwarz."""
    row = torch.ones(1, d_in).expand(16, d_in).contiguous()
    kernels = CpuKernels(row.clone(), row.clone(), 1, Search.INTEGERS)
    acts, *_ = kernels.encode(row[:4], torch.zeros(16))
    torch.testing.assert_close(acts, torch.full((4, 1), float(d_in)), rtol=1e-4, atol=0)
