"""The compiled kernels give the same codes, gradients and updates as the readable reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_engine.kernels import select_topk
from sae_engine.kernels.adam import Moments
from sae_engine.kernels.cpu.search import SEARCHES, Search
from sae_engine.kernels.cpu.step import CpuKernels, Reconstruction, Rest
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.autograd_step import AutogradStepper
from sae_engine.sae.compiled_step import CompiledStepper, variance_of
from sae_engine.sae.loss import total_variance
from sae_engine.sae.stepper import DeadLatents, StepSettings, k_auxk

pytestmark = pytest.mark.usefixtures("two_threads")

SIZES = st.tuples(
    st.integers(1, 9), st.integers(1, 40), st.integers(1, 70), st.integers(1, 12)
).filter(lambda size: size[3] <= size[2])
"""(tokens, d_in, d_sae, k)"""


def random_rows(seed: int, d_sae: int, d_in: int, spread: float = 1.0) -> tuple[Tensor, ...]:
    """W_dec and W_enc [d_sae, d_in], rows of different norms, and b_enc."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    norms = (spread * normal(d_sae, 1)).exp()
    return normal(d_sae, d_in) * norms, normal(d_sae, d_in) / d_in**0.5, 0.1 * normal(d_sae)


def assert_same_code(
    acts: Tensor, indices: Tensor, x: Tensor, W_dec: Tensor, W_enc: Tensor, b_enc: Tensor, k: int
) -> None:
    """The dense codes agree, except where a score is within rounding of the k-th."""
    pre = (x.double() @ W_enc.double().T + b_enc.double()).relu()
    scores = pre * W_dec.double().norm(dim=1)
    kth = scores.topk(k).values[:, -1:]
    dense = torch.zeros_like(pre).scatter_add_(1, indices.long(), acts.double())
    slack = 1e-5 * (scores.amax(1, keepdim=True) + 1e-6)
    certain = (scores - kth).abs() > slack
    expected = torch.where(scores >= kth, pre, 0.0)
    close = torch.isclose(dense, expected, rtol=1e-4, atol=1e-5)
    assert bool((close | ~certain).all())
    assert int((acts > 0).sum(1).max()) <= k
    wanted = torch.minimum((pre > 1e-5).sum(1), torch.tensor(k))
    assert bool(((acts > 0).sum(1) >= wanted).all())


@pytest.mark.parametrize("how", SEARCHES)
@settings(deadline=None)  # the first call compiles
@given(SIZES, st.integers(0, 10_000))
def test_encoding_and_decoding_agree_with_the_reference(how: Search, size, seed: int):
    n, d_in, d_sae, k = size
    W_dec, W_enc, b_enc = random_rows(seed, d_sae, d_in)
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed + 1))
    kernels = CpuKernels(W_dec, W_enc, k, how)
    codes = kernels.encode(x, b_enc)
    acts, indices, kept = codes
    assert kept.tolist() == (acts > 0).sum(1).tolist()
    assert_same_code(acts, indices, x, W_dec, W_enc, b_enc, k)
    dense = torch.zeros(n, d_sae).scatter_add_(1, indices.long(), acts)
    torch.testing.assert_close(kernels.decode(codes), dense @ W_dec, rtol=1e-4, atol=1e-4)
    rest = kernels.compare(codes, x)
    torch.testing.assert_close(rest.residual, x - dense @ W_dec, rtol=1e-4, atol=1e-4)
    norms, projections = rest.residual.norm(dim=1), rest.residual @ W_dec.T
    torch.testing.assert_close(torch.from_numpy(rest.norms), norms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.from_numpy(rest.projections)[acts > 0],
        projections.gather(1, indices.long())[acts > 0],
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("how", SEARCHES)
def test_kernels_and_reference_select_the_same_latents_at_a_realistic_size(how: Search):
    W_dec, W_enc, b_enc = random_rows(0, 4096, 256, spread=0.2)
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(1))
    acts, indices, _ = CpuKernels(W_dec, W_enc, 32, how).encode(x, b_enc)
    pre = torch.addmm(b_enc, x, W_enc.T)
    reference_acts, reference = select_topk(pre, W_dec.norm(dim=1), 32)
    same = (indices.sort(1).values == reference.sort(1).values).all(1)
    assert same.float().mean() > 0.995  # another order of summation can swap a near tie
    torch.testing.assert_close(
        acts.sort(1).values[same], reference_acts.sort(1).values[same], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("how", SEARCHES)
@pytest.mark.parametrize("case", ["negative", "zero rows", "equal rows", "spikes", "huge", "tiny"])
def test_degenerate_input_is_encoded_like_the_reference(case: str, how: Search):
    W_dec, W_enc, b_enc = random_rows(3, 50, 12)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(4))
    if case == "negative":
        b_enc -= 100
    elif case == "zero rows":
        x[2:5] = 0
        W_enc[10:30] = 0
    elif case == "equal rows":
        W_enc[:], W_dec[:], b_enc[:] = W_enc[0], W_dec[0], 0
    elif case == "spikes":
        x[:, 3] += 1e4
        W_enc[5, 7] = 300
    elif case == "huge":
        x *= 1e15
    else:
        x *= 1e-15
        b_enc *= 1e-15
    kernels = CpuKernels(W_dec, W_enc, 5, how)
    codes = kernels.encode(x, b_enc)
    acts, indices, _ = codes
    if case == "equal rows":  # any k latents are correct
        expected = (x @ W_enc[0]).relu()[:, None].expand(-1, 5)
        torch.testing.assert_close(acts, expected, rtol=1e-4, atol=1e-6)
        assert all(
            len(set(row.tolist())) == 5 for row, a in zip(indices, acts, strict=True) if a[0]
        )
    else:
        scale = 1.0 if case not in ("huge", "tiny") else float(x.abs().max())
        assert_same_code(acts / scale, indices, x / scale, W_dec, W_enc, b_enc / scale, 5)
    assert bool(kernels.decode(codes).isfinite().all())
    if case == "negative":
        assert int((acts > 0).sum()) == 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grad_clip", [0.05, float("inf")])
@settings(deadline=None)  # the first call compiles
@given(SIZES, st.integers(0, 10_000), st.booleans())
def test_several_compiled_steps_equal_autograd_and_torch_adam(
    tied: bool, grad_clip: float, size, seed: int, normalize: bool
):
    n, d_in, d_sae, k = size
    objective = StepSettings(float(d_in), 1 / 32, 0.01, grad_clip, normalize or tied)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(d_in, generator=generator)
    twins: list[tuple[TopKSAE, AutogradStepper | CompiledStepper]] = []
    for stepper in (AutogradStepper, CompiledStepper):
        sae = TopKSAE(d_in, d_sae, k, tied=tied)
        sae.initialize_(seed, start)
        twins.append((sae, stepper(sae)))
    largest_norm = 1.0
    for step in range(3):
        x = torch.randn(n, d_in, generator=generator) + start
        dead = torch.randperm(d_sae, generator=generator)[: d_sae // 3 if step else 0]
        if near_tie(twins[0][0], x, dead) or is_perfect(twins[0][0], x):
            return  # rounding decides, so the twins may diverge
        outcomes = [s.step(x, objective, DeadLatents.of(dead, d_sae), 1e-5) for _, s in twins]
        torch.testing.assert_close(
            outcomes[1].grad_norm, outcomes[0].grad_norm, rtol=1e-3, atol=1e-6
        )
        torch.testing.assert_close(outcomes[1].auxk, outcomes[0].auxk, rtol=1e-3, atol=1e-5)
        largest_norm = max(largest_norm, outcomes[0].grad_norm.item())
    states = [s.state() for _, s in twins]
    for name, expected in states[0].items():
        if name.endswith("mean") or name == "step":
            atol = 2e-6 * largest_norm
            torch.testing.assert_close(states[1][name], expected, rtol=1e-3, atol=atol, msg=name)


@settings(deadline=None)
@given(SIZES, st.integers(0, 10_000), st.booleans(), st.booleans())
def test_the_bounds_of_the_gradient_norms_hold(size, seed: int, tied: bool, has_auxk: bool):
    n, d_in, d_sae, k = size
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(d_in, d_sae, k, tied=tied)
    sae.initialize_(seed, torch.zeros(d_in))
    kernels = CpuKernels(sae.W_dec.data, sae.encoder_rows.data, k)
    x = torch.randn(n, d_in, generator=generator)
    dead = torch.arange(0, d_sae, 2)
    codes, of_dead = kernels.encode_with_dead(x, sae.b_enc.data, dead, k_auxk(d_in))
    rest = kernels.compare(codes, torch.randn(n, d_in, generator=generator))
    code, left = Reconstruction(codes, rest, -0.7, 0.1), kernels.compare(of_dead, rest.residual)
    auxk = Reconstruction(of_dead, left, -0.3, 0.0) if has_auxk else None
    found = kernels.gradients(x, code, auxk, normalize=tied)
    squares, centering = kernels.squared_norm(found)
    assert found.norm_bound >= squares**0.5 * (1 - 1e-5)
    assert found.centering_bound >= centering.norm() * (1 - 1e-5)
    expected = found.code_bias_grads @ sae.encoder_rows
    torch.testing.assert_close(centering, expected, rtol=1e-4, atol=1e-4)
    dec, enc = (Moments(torch.zeros(d_sae, d_in), torch.zeros(d_sae, d_in)) for _ in range(2))
    again = kernels.update(found, dec, dec if tied else enc, clip=1.0, lr=0.1, step=1)
    assert torch.equal(again, centering)


@pytest.mark.parametrize("how", SEARCHES)
@settings(deadline=None)
@given(SIZES, st.integers(0, 10_000), st.integers(1, 6))
def test_dead_latents_get_the_codes_of_a_dense_search(how: Search, size, seed: int, k_aux):
    n, d_in, d_sae, k = size
    W_dec, W_enc, b_enc = random_rows(seed, d_sae, d_in)
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed + 1))
    dead = torch.arange(d_sae)[seed % 3 :: 3]
    kernels = CpuKernels(W_dec, W_enc, k, how)
    codes, of_dead = kernels.encode_with_dead(x, b_enc, dead, min(k_aux, max(1, len(dead))))
    assert all(
        torch.equal(a, b) for a, b in zip(codes[:2], kernels.encode(x, b_enc)[:2], strict=True)
    )
    if len(dead):
        places = torch.zeros(d_sae, dtype=torch.long).scatter_(0, dead, torch.arange(len(dead)))
        active = of_dead.acts > 0
        assert bool(torch.isin(of_dead.indices[active], dead).all())
        where = torch.where(active, places[of_dead.indices.long()], 0)
        assert_same_code(
            of_dead.acts, where, x, W_dec[dead], W_enc[dead], b_enc[dead], of_dead.acts.shape[1]
        )
    else:
        assert int(of_dead.kept.sum()) == 0


@pytest.mark.parametrize("how", SEARCHES)
@pytest.mark.parametrize("d_sae", [16, 37, 96])
def test_an_update_leaves_the_same_norms_and_shadow_as_a_new_searcher_computes(
    how: Search, d_sae: int
):
    W_dec, W_enc, b_enc = random_rows(7, d_sae, 20)
    kernels = CpuKernels(W_dec, W_enc, 4, how)
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(8))
    dec, enc = (Moments(torch.zeros(d_sae, 20), torch.zeros(d_sae, 20)) for _ in range(2))
    for step in (1, 2):
        codes = kernels.encode(x, b_enc)
        code = Reconstruction(codes, kernels.compare(codes, x), -0.1, 0.0)
        found = kernels.gradients(x, code, None, normalize=False)
        kernels.update(found, dec, enc, clip=1.0, lr=0.01, step=step)
    fresh = CpuKernels(W_dec, W_enc, 4, how)
    fresh.encode(x, b_enc)
    for kept, new in zip(kernels._searcher.shadow, fresh._searcher.shadow, strict=True):
        np.testing.assert_array_equal(kept[:d_sae], new[:d_sae])
    np.testing.assert_array_equal(kernels._searcher.norms, fresh._searcher.norms)
    np.testing.assert_array_equal(kernels._searcher.enc_norms, fresh._searcher.enc_norms)


@pytest.mark.parametrize("shift", [0.0, 3.0, 1000.0])
def test_the_variance_computed_from_a_residuals_norms_is_its_total_variance(shift: float):
    """Also where the mean dominates, so that a difference of squares would be all rounding."""
    residual = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) + shift
    norms = residual.norm(dim=1).numpy()
    rest = Rest(residual, norms, np.empty((40, 1), np.float32))
    expected = total_variance(residual).item()
    assert variance_of(rest, residual.sum(0)) == pytest.approx(expected, rel=1e-4)
    one = Rest(residual[:1], norms[:1], np.empty((1, 1), np.float32))
    assert variance_of(one, residual[0]) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_does_not_depend_on_the_number_of_threads(tied: bool):
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sae = TopKSAE(24, 200, 4, tied=tied)
            sae.initialize_(0, torch.zeros(24))
            stepper = CompiledStepper(sae)
            for seed in range(2):
                x = torch.randn(70, 24, generator=torch.Generator().manual_seed(seed))
                objective = StepSettings(24.0, 1 / 32, 0.01, 0.01, tied)
                stepper.step(x, objective, DeadLatents.of(torch.arange(30), 200), 1e-3)
            states.append(stepper.state())
    finally:
        torch.set_num_threads(before)
    for other in states[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in states[0].items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grad_clip", [1e-3, 1e3])
def test_a_step_is_the_same_whether_or_not_its_norm_is_reported(grad_clip: float, tied: bool):
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    states = []
    for wants_norm in (True, False):
        sae = TopKSAE(24, 80, 4, tied=tied)
        sae.initialize_(0, torch.zeros(24))
        stepper = CompiledStepper(sae)
        objective = StepSettings(24.0, 1 / 32, 0.01, grad_clip, tied, wants_norm)
        outcome = stepper.step(x, objective, DeadLatents.of(torch.arange(20), 80), 1e-3)
        states.append(stepper.state() | {"grad_norm": outcome.grad_norm})
    assert states[1].pop("grad_norm") >= states[0].pop("grad_norm")
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def near_tie(sae: TopKSAE, x: Tensor, dead: Tensor) -> bool:
    """Whether rounding may decide which latents are in a token's code, or in AuxK's."""
    scores = (sae.pre_activations(x) * sae.W_dec.norm(dim=1)).detach()

    def is_close(scores: Tensor, k: int) -> bool:
        top = scores.topk(min(k + 1, scores.shape[1])).values
        if scores.shape[1] > k and bool(((top[:, -2] - top[:, -1]).abs() < 1e-3).any()):
            return True
        return bool((scores.abs() < 1e-3).any())

    return is_close(scores, sae.k) or (
        len(dead) > 0 and is_close(scores[:, dead], k_auxk(sae.d_in))
    )


def is_perfect(sae: TopKSAE, x: Tensor) -> bool:
    """Whether the residual's variance, by which AuxK is divided, is nothing but rounding."""
    return bool(total_variance((x - sae(x)).detach()) < 1e-6)


def test_the_next_search_notices_weights_changed_outside_the_kernels():
    W_dec, W_enc, b_enc = random_rows(5, 40, 10)
    kernels = CpuKernels(W_dec, W_enc, 3)
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(6))
    kernels.encode(x, b_enc)
    for changed in (W_enc, W_dec):
        changed[::2] *= -3
        acts, indices, _ = kernels.encode(x, b_enc)
        assert_same_code(acts, indices, x, W_dec, W_enc, b_enc, 3)


def test_a_step_notices_weights_loaded_after_another_step():
    """A used stepper behaves like a new one for the loaded weights."""
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    objective, none = (
        StepSettings(8.0, 0.0, 0.0, 1.0, False),
        DeadLatents.of(torch.empty(0).long(), 20),
    )
    used, fresh = TopKSAE(8, 20, 3), TopKSAE(8, 20, 3)
    used.initialize_(0, torch.zeros(8))
    fresh.initialize_(1, torch.ones(8))
    stepper = CompiledStepper(used)
    stepper.step(x, objective, none, 0.1)
    used.load_state_dict(fresh.state_dict())
    outcome = stepper.step(x, objective, none, 0.1)
    expected = CompiledStepper(fresh).step(x, objective, none, 0.1)
    torch.testing.assert_close(outcome.residual, expected.residual, rtol=0, atol=0)


def test_adam_state_moves_from_the_compiled_to_the_autograd_stepper():
    sae = TopKSAE(8, 20, 3)
    sae.initialize_(0, torch.zeros(8))
    objective = StepSettings(8.0, 0.0, 0.0, 1.0, False)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    none = DeadLatents.of(torch.empty(0, dtype=torch.long), 20)
    compiled = CompiledStepper(sae)
    for _ in range(2):
        compiled.step(x, objective, none, 1e-3)
    twin = TopKSAE(8, 20, 3)
    twin.load_state_dict(sae.state_dict())
    autograd = AutogradStepper(twin)
    autograd.load_state(compiled.state())
    compiled.step(x, objective, none, 1e-3)
    autograd.step(x, objective, none, 1e-3)
    torch.testing.assert_close(twin.W_enc, sae.W_enc, rtol=0, atol=1e-5)
    torch.testing.assert_close(twin.b_dec, sae.b_dec, rtol=0, atol=1e-5)


def test_nan_in_an_activation_shows_in_this_step_and_the_next():
    """The search skips such a token, but its residual is NaN."""
    sae = TopKSAE(16, 64, 4)
    sae.initialize_(0, torch.zeros(16))
    stepper = CompiledStepper(sae)
    objective, none = (
        StepSettings(16.0, 0.0, 0.0, 1.0, False),
        DeadLatents.of(torch.empty(0).long(), 64),
    )
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    spoiled = x.clone()
    spoiled[3, 2] = float("nan")
    outcome = stepper.step(spoiled, objective, none, 1e-3)
    assert outcome.residual.isnan().any()
    assert outcome.grad_norm.isnan()
    assert stepper.step(x, objective, none, 1e-3).residual.isnan().any()
