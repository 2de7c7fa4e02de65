"""The GPU kernels give the same codes, gradients and updates as the readable reference.

Without a GPU, they run in Triton's interpreter, as Python on the CPU, at small sizes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.autograd_step import AutogradStepper
from sae_engine.sae.compiled_step import CompiledStepper
from sae_engine.sae.stepper import DeadLatents, StepOutcome, Stepper, StepSettings
from sae_engine.sae.stepper_choice import find_obstacle, open_stepper
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import SAEConfig, TrainConfig
from tests.house.repository import ROOT

HAS_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is for Linux")
if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from sae_engine.kernels.gpu import codes as triton_codes  # noqa: E402
from sae_engine.kernels.gpu import select as triton_select  # noqa: E402
from sae_engine.kernels.reference import decode  # noqa: E402
from sae_engine.sae.triton_step import Search, TritonStepper, margin  # noqa: E402

DEVICE = "cuda" if HAS_GPU else "cpu"
D_IN, D_SAE, K = 10, 24, 3
NONE_DEAD = DeadLatents.of(torch.empty(0, dtype=torch.long, device=DEVICE), D_SAE)
FEW_DEAD = DeadLatents.of(torch.tensor([1, 4, 9, 16], device=DEVICE), D_SAE)
MANY_DEAD = DeadLatents.of(torch.arange(0, D_SAE, 2, device=DEVICE), D_SAE)
ALL_DEAD = DeadLatents.of(torch.arange(D_SAE, device=DEVICE), D_SAE)


def gpu(test):
    """Mark a test that needs a GPU."""
    skipped = pytest.mark.skipif(not HAS_GPU, reason="there is no CUDA device")
    return pytest.mark.gpu(skipped(test))


def batch(seed: int, n: int = 6, d_in: int = D_IN) -> Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def new_sae(
    *, tied: bool = False, d_in: int = D_IN, d_sae: int = D_SAE, k: int = K, seed: int = 0
) -> TopKSAE:
    """An SAE whose decoder rows differ in norm and whose encoder is not the decoder's transpose."""
    sae = TopKSAE(d_in, d_sae, k, tied=tied)
    sae.initialize_(seed, torch.full((d_in,), 0.1))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        sae.W_dec.mul_((0.3 * torch.randn(d_sae, 1, generator=generator)).exp())
        sae.b_enc.add_(0.1 * torch.randn(d_sae, generator=generator))
        if not tied:
            sae.W_enc.add_(0.3 * torch.randn(d_sae, d_in, generator=generator) / d_in**0.5)
    return sae.to(DEVICE)


def objective_of(
    *, l1: float = 0.0, clip: float = 1e9, normalize: bool = False, wants_norm: bool = True
) -> StepSettings:
    return StepSettings(float(D_IN), 1 / 32, l1, clip, normalize, wants_norm)


@pytest.mark.parametrize("d_in", [1, 10, 300])
def test_decoding_and_gathered_dot_products_equal_dense_ones(d_in: int):
    n, d_sae, k = 3, 20, 11
    pre, table, rows = batch(0, n, d_sae), batch(1, d_sae, d_in), batch(2, n, d_in)
    pre[1] = -1
    bias = batch(3, 1, d_sae)[0]
    codes = triton_select.select(pre, torch.zeros_like(bias), torch.ones_like(bias), k)
    expected = decode(codes.acts, codes.indices.long(), table)
    torch.testing.assert_close(triton_codes.decode(codes, table), expected)
    dots = (rows @ table.T + bias).gather(1, codes.indices.long()) + 0.5
    found = triton_codes.gather_dot(rows, table, codes.indices, codes.kept, bias=bias, added=0.5)
    torch.testing.assert_close(found, dots * (codes.acts > 0), rtol=1e-5, atol=1e-5)


def twin_of(sae: TopKSAE) -> TopKSAE:
    twin = TopKSAE(sae.d_in, sae.d_sae, sae.k, tied=sae.tied).to(DEVICE)
    twin.load_state_dict(sae.state_dict())
    return twin


def assert_close_outcomes(found: StepOutcome, expected: StepOutcome) -> None:
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.auxk, expected.auxk, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.grad_norm, expected.grad_norm.to(found.grad_norm.device), rtol=1e-4, atol=1e-6
    )
    dense = [
        torch.zeros(len(o.acts), D_SAE, device=DEVICE).scatter_add_(1, o.indices.long(), o.acts)
        for o in (found, expected)
    ]
    torch.testing.assert_close(dense[0], dense[1], rtol=1e-4, atol=1e-5)


def assert_close_states(found: Stepper, expected: Stepper) -> None:
    states = found.state(), expected.state()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        theirs = states[1][name].to(tensor.device)
        torch.testing.assert_close(tensor, theirs, rtol=1e-3, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("tied", "objective", "dead"),
    [
        (False, objective_of(), NONE_DEAD),
        (False, objective_of(l1=0.01, clip=0.05), FEW_DEAD),
        (True, objective_of(l1=0.01, clip=0.05), MANY_DEAD),
        (False, objective_of(normalize=True), MANY_DEAD),
        (True, objective_of(normalize=True, clip=0.05), FEW_DEAD),
        (False, objective_of(), ALL_DEAD),
    ],
    ids=["plain", "clipped, l1, auxk", "tied", "unit norm", "tied, unit norm", "all dead"],
)
def test_steps_equal_autograd_and_torchs_adam(
    tied: bool, objective: StepSettings, dead: DeadLatents
):
    sae = new_sae(tied=tied)
    twin = twin_of(sae)
    mine, reference = TritonStepper(sae), AutogradStepper(twin)
    for step in range(2):
        x = batch(step)
        found = mine.step(x, objective, dead, 1e-3)
        assert_close_outcomes(found, reference.step(x, objective, dead, 1e-3))
    assert_close_states(mine, reference)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(
            sae.get_parameter(name), parameter, rtol=1e-4, atol=2e-6, msg=name
        )


def test_only_dead_latents_take_part_in_auxk_if_the_upper_bound_of_their_number_is_larger():
    states = []
    for more in (0, D_SAE - 4):
        stepper = TritonStepper(new_sae())
        dead = FEW_DEAD._replace(max_count=FEW_DEAD.max_count + more)
        outcome = stepper.step(batch(0), objective_of(), dead, 1e-3)
        states.append({**stepper.state(), "auxk": outcome.auxk})
    outcome = TritonStepper(new_sae()).step(
        batch(0), objective_of(), NONE_DEAD._replace(max_count=5), 1e-3
    )
    assert outcome.auxk.item() == 0
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("clip", [0.05, 1e3, float("inf")])
def test_a_step_is_the_same_whether_or_not_its_norm_is_reported(clip: float):
    found = []
    for wants_norm in (True, False):
        stepper = TritonStepper(new_sae())
        objective = objective_of(clip=clip, wants_norm=wants_norm)
        norm = stepper.step(batch(0), objective, FEW_DEAD, 1e-3).grad_norm
        found.append((norm, stepper.state()))
    assert found[1][0] >= found[0][0] * (1 - 1e-6)
    for name, tensor in found[0][1].items():
        assert torch.equal(tensor, found[1][1][name]), name


def test_repeated_and_resumed_runs_are_bit_identical():
    objective = objective_of(clip=0.05, normalize=True)
    ends = []
    for interrupted in (False, False, True):
        sae = new_sae()
        stepper = TritonStepper(sae, "bfloat16")
        for step in range(2):
            if interrupted and step == 1:
                sae, state = twin_of(sae), stepper.state()
                stepper = TritonStepper(sae, "bfloat16")
                stepper.load_state(state)
            stepper.step(batch(step), objective, FEW_DEAD, 1e-3)
        ends.append({**sae.state_dict(), **stepper.state()})
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
        assert torch.equal(tensor, ends[2][name]), name


@pytest.mark.parametrize("other", [AutogradStepper, CompiledStepper])
def test_adam_state_moves_between_triton_and_the_other_steppers(other):
    if HAS_GPU and other is CompiledStepper:
        pytest.skip("works on the CPU only")
    sae = new_sae()
    stepper: Stepper = TritonStepper(sae)
    stepper.step(batch(0), objective_of(), NONE_DEAD, 1e-3)
    twin = twin_of(sae)
    there = other(twin)
    there.load_state(stepper.state())
    for s in (stepper, there):
        s.step(batch(1), objective_of(), NONE_DEAD, 1e-3)
    assert_close_states(stepper, there)
    back = TritonStepper(twin)
    back.load_state(there.state())
    for s in (stepper, back):
        s.step(batch(2), objective_of(), NONE_DEAD, 1e-3)
    assert_close_states(stepper, back)


def test_a_bfloat16_search_gives_the_codes_activations_and_updates_of_float32():
    """Its margin of candidates is ample here, and the kept ones are computed in float32. Tokens and
    dead latents are processed in blocks.
    """
    sae = new_sae(d_sae=40, k=4)
    twin = twin_of(sae)
    mine = TritonStepper(sae, "bfloat16", dense_scores=40 * 4, dead_block=4)
    exact = TritonStepper(twin)
    dead = DeadLatents.of(torch.arange(0, 40, 4, device=DEVICE), 40)
    for step in range(2):
        found, expected = (s.step(batch(step), objective_of(), dead, 1e-2) for s in (mine, exact))
        torch.testing.assert_close(found.auxk, expected.auxk, rtol=1e-5, atol=0)
        assert torch.equal(found.indices.sort(1).values, expected.indices.sort(1).values)
        torch.testing.assert_close(
            found.acts.sort(1).values, expected.acts.sort(1).values, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(sae.W_enc, twin.W_enc, rtol=1e-4, atol=1e-6)
    assert mine._shadow is not None
    torch.testing.assert_close(mine._shadow.float(), sae.W_enc.detach(), rtol=2**-7, atol=0)


def test_the_next_bfloat16_search_notices_weights_changed_outside_the_stepper():
    sae = new_sae()
    stepper = TritonStepper(sae, "bfloat16")
    stepper.step(batch(0), objective_of(), NONE_DEAD, 1e-3)
    with torch.no_grad():
        sae.W_enc.mul_(-1)
    expected = sae.encode(batch(1))
    found = stepper.step(batch(1), objective_of(), NONE_DEAD, 1e-3)
    torch.testing.assert_close(
        found.acts.sort(1).values, expected.acts.sort(1).values, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("mean", "outlier"), [(0.0, 0.0), (1.0, 0.0), (1.0, 100.0)])
def test_rounding_to_bfloat16_changes_ranks_by_far_less_than_the_margin(
    mean: float, outlier: float
):
    n, d_in, d_sae, k = 64, 512, 8192, 32
    rows = torch.nn.functional.normalize(batch(0, d_sae, d_in), dim=1)
    x = batch(1, n, d_in) + mean * batch(2, 1, d_in)
    x[:, :3] += outlier * batch(3, n, 1)
    best = (x @ rows.T).topk(k).indices
    order = (x.bfloat16().float() @ rows.bfloat16().float().T).argsort(1, descending=True)
    places = order.argsort(1).gather(1, best)
    assert int(places.max()) < k + margin(k) // 2


def test_a_trainer_reports_the_same_metrics_with_triton_and_with_autograd():
    """Latents die and AuxK starts in the middle of the run."""
    runs = []
    for stepper in (AutogradStepper, TritonStepper):
        sae = new_sae()
        config = TrainConfig(total_tokens=1000, lr=1e-3, dead_feature_threshold=12)
        trainer = SAETrainer(sae, SAEConfig(d_sae=D_SAE, k=K), config, Budget(6, 36), stepper(sae))
        metrics = [trainer.step(batch(0) + 0.1 * batch(i)).metrics() for i in range(5)]
        runs.append((metrics, trainer.since_fired.tolist()))
    assert runs[0][1] == runs[1][1]
    assert [float(m.auxk_loss) > 0 for m in runs[0][0]] == [False, False, False, True, True]
    for expected, found in zip(runs[0][0], runs[1][0], strict=True):
        for name, value in expected._asdict().items():
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("search", ["float32", "bfloat16"])
def test_the_obstacle_that_keeps_kernels_from_running_is_reported(search: Search):
    new_stepper = partial(TritonStepper, search=search)
    assert find_obstacle(torch.device(DEVICE), new_stepper) is None
    elsewhere = torch.device("cpu" if HAS_GPU else "meta")  # where no kernel can run
    assert "Error" in str(find_obstacle(elsewhere, new_stepper))


def test_a_stepper_with_wrong_results_is_reported(monkeypatch: pytest.MonkeyPatch):
    right = triton_codes.decode
    monkeypatch.setattr(triton_codes, "decode", lambda *given: 1.01 * right(*given))
    found = find_obstacle(torch.device(DEVICE), TritonStepper)
    assert "of a trial step's result is wrong" in str(found)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler exists on Linux only")
def test_every_kernel_compiles_for_cuda(tmp_path: Path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sae_engine.kernels.compile_for_cuda"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 15


@gpu
@pytest.mark.parametrize("search", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tied", "normalize"), [(False, False), (False, True), (True, True)])
def test_steps_equal_autograd_at_a_realistic_size_on_a_gpu(search, tied: bool, normalize: bool):
    d_in, d_sae, k, n = 2304, 16384, 64, 1024
    sae = new_sae(tied=tied, d_in=d_in, d_sae=d_sae, k=k)
    twin = twin_of(sae)
    mine, reference = TritonStepper(sae, search), AutogradStepper(twin)
    objective = StepSettings(float(d_in), 1 / 32, 1e-4, 0.05, normalize)
    dead = DeadLatents.of(torch.arange(0, d_sae, 7, device=DEVICE), d_sae)
    for step in range(3):
        x = batch(step, n, d_in)
        found = mine.step(x, objective, dead, 1e-5)
        expected = reference.step(x, objective, dead, 1e-5)
        same = (found.indices.long().sort(1).values == expected.indices.sort(1).values).all(1)
        assert same.float().mean() > 0.99  # another order of summation can swap a near tie
        torch.testing.assert_close(
            found.residual[same], expected.residual[same], rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(found.auxk, expected.auxk, rtol=1e-3, atol=0)
        torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-3, atol=0)
    for name, parameter in twin.named_parameters():
        difference = (sae.get_parameter(name) - parameter).detach()
        assert difference.abs().mean() < 1e-7, name


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_steady_step_never_synchronizes_with_the_gpu():
    sae = new_sae(d_in=256, d_sae=2048, k=16)
    assert isinstance(open_stepper(sae), TritonStepper)
    config = TrainConfig(total_tokens=10_000_000, dead_feature_threshold=30_000)
    shape = SAEConfig(d_sae=2048, k=16, normalize_decoder=True)
    trainer = SAETrainer(sae, shape, config, Budget(10_000, 10_000_000))
    x = batch(0, 512, 256)
    trainer.since_fired[::5] = 40_000
    trainer.step(x)  # counts the dead, compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for measured in (True, False, True):
            trainer.step(x, measured=measured)
    finally:
        torch.cuda.set_sync_debug_mode("default")
