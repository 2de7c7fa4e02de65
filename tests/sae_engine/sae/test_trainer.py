import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.autograd_step import AutogradStepper
from sae_engine.sae.compiled_step import CompiledStepper
from sae_engine.sae.stepper import DeadLatents, StepOutcome, StepSettings
from sae_engine.sae.trainer import Budget, SAETrainer, dead_threshold, default_lr, scheduled_lr
from sae_engine.schema.config import SAEConfig, TrainConfig
from tests.sae_engine.sae.test_autoencoders import random_sae

D_IN, D_SAE, K = 6, 20, 4


STEPPERS = [AutogradStepper, CompiledStepper]


def trainer_of(sae: TopKSAE, stepper=CompiledStepper, **settings) -> SAETrainer:
    config = TrainConfig(total_tokens=10_000, batch_size_tokens=16, grad_clip=None, **settings)
    trainer = SAETrainer(
        sae, SAEConfig(d_sae=D_SAE, k=K), config, Budget(1000, 10_000), stepper(sae)
    )
    trainer.variance = 2.5
    return trainer


def reference_auxk(
    sae: TopKSAE, x: torch.Tensor, x_hat: torch.Tensor, dead: torch.Tensor
) -> torch.Tensor:
    """Appendix A.2 of Gao et al. 2024, over the dense code with all live latents masked."""
    pre = torch.relu((x - sae.b_dec.detach()) @ sae.W_enc.T + sae.b_enc)
    ranking = (pre * sae.W_dec.norm(dim=1)).detach().masked_fill(~dead, -1)
    k_aux = min(x.shape[1] // 2, int(dead.sum()))
    chosen = torch.zeros_like(ranking).scatter(1, ranking.topk(k_aux).indices, 1.0)
    residual = (x - x_hat).detach()
    guess = (pre * chosen) @ sae.W_dec
    variance = (residual - residual.mean(0)).pow(2).sum(1).mean()
    return (residual - guess).pow(2).sum(1).mean() / variance


def reference_loss(
    sae: TopKSAE, x: torch.Tensor, dead: torch.Tensor, *, variance: float, alpha: float, l1: float
) -> torch.Tensor:
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    top = (pre * sae.W_dec.norm(dim=1)).detach().topk(sae.k).indices
    z = pre * torch.zeros_like(pre).scatter(1, top, 1.0)
    x_hat = z @ sae.W_dec + sae.b_dec
    loss = (x - x_hat).pow(2).sum(1).mean() / variance + l1 * z.sum(1).mean()
    return loss + alpha * reference_auxk(sae, x, x_hat, dead) if dead.any() else loss


def gradients_of_first_step(trainer: SAETrainer) -> dict[str, torch.Tensor]:
    """Adam's first mean is a tenth of the gradient."""
    state = trainer.stepper.state()
    return {name: state[f"{name}.mean"] * 10 for name, _ in trainer.sae.named_parameters()}


@pytest.mark.parametrize("stepper", STEPPERS)
@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 10_000), st.sampled_from([0, 3, D_SAE]))
def test_loss_and_gradients_equal_an_independent_dense_implementation(
    stepper, seed: int, num_dead: int
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, D_IN, generator=generator)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[torch.randperm(D_SAE, generator=generator)[:num_dead]] = True

    sae = random_sae(seed)
    trainer = trainer_of(sae, stepper, auxk_alpha=0.3, l1_lambda=0.01, lr=1e-12)
    trainer.since_fired[dead] = trainer.dead_threshold + 1
    twin = random_sae(seed)
    expected = reference_loss(twin, x, dead, variance=2.5, alpha=0.3, l1=0.01)
    expected.backward()

    assert trainer.step(x).metrics().loss.item() == pytest.approx(expected.item(), rel=1e-4)
    mine = gradients_of_first_step(trainer)
    for name, theirs in twin.named_parameters():
        torch.testing.assert_close(mine[name], theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("stepper", STEPPERS)
def test_auxk_trains_all_weights_of_the_chosen_dead_latents_and_no_live_one(stepper):
    """Shown by the difference AuxK makes to every gradient of one step."""
    dead = torch.tensor([2, 5, 11, 17])
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(0))
    found: list[dict[str, torch.Tensor]] = []
    for alpha in (0.0, 1.0):
        sae = random_sae(7)
        trainer = trainer_of(sae, stepper, auxk_alpha=alpha, lr=1e-12)
        trainer.since_fired[dead] = trainer.dead_threshold + 1
        trainer.step(x)
        found.append(gradients_of_first_step(trainer))
    sae = random_sae(7)
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc[dead].T + sae.b_enc[dead]).detach()
    best = (pre * sae.W_dec[dead].norm(dim=1)).topk(D_IN // 2).indices
    chosen = {int(dead[i]) for row, p in zip(best, pre, strict=True) for i in row if p[i] > 0}
    assert len(chosen) > 2
    for name in ("W_enc", "W_dec", "b_enc"):
        difference = (found[1][name] - found[0][name]).reshape(D_SAE, -1).abs().sum(1)
        assert set((difference > 1e-6).nonzero().squeeze(1).tolist()) == chosen, name
    torch.testing.assert_close(found[1]["b_dec"], found[0]["b_dec"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("stepper", STEPPERS)
def test_auxk_is_zero_when_nothing_is_dead(stepper):
    trainer = trainer_of(random_sae(8), stepper)
    assert trainer.step(torch.randn(16, D_IN)).metrics().auxk_loss.item() == 0


def test_a_latent_is_dead_after_the_threshold_and_alive_once_it_fires():
    sae = random_sae(9)
    trainer = trainer_of(sae, dead_feature_threshold=40, auxk_alpha=0)
    with torch.no_grad():
        sae.b_enc[0] = -1e6
    x = torch.randn(16, D_IN)
    for _ in range(2):
        trainer.step(x)
    assert trainer.since_fired[0] == 32
    trainer.step(x)
    never_fired = int((trainer.since_fired == 48).sum())
    assert trainer.since_fired[0] == 48
    assert 0 < never_fired < D_SAE
    assert trainer.frac_dead == pytest.approx(never_fired / D_SAE)
    with torch.no_grad():
        sae.b_enc[0] = 1e3
    trainer.step(x)
    assert trainer.since_fired[0] == 0


class StepperThatCounts(CompiledStepper):
    """Records the number of dead latents and its upper bound before each step."""

    def __init__(self, sae: TopKSAE) -> None:
        super().__init__(sae)
        self.dead: list[tuple[int, int]] = []

    def step(
        self, x: torch.Tensor, objective: StepSettings, dead: DeadLatents, lr: float
    ) -> StepOutcome:
        self.dead.append((int(dead.mask.sum()), dead.max_count))
        return super().step(x, objective, dead, lr)


@pytest.mark.parametrize("threshold", [1, 40, 2000])
def test_the_bound_on_dead_latents_holds(threshold: int):
    """Also if batches differ in size and the counters are changed from outside."""
    trainer = trainer_of(
        random_sae(10), StepperThatCounts, dead_feature_threshold=threshold, auxk_alpha=0
    )
    with torch.no_grad():
        trainer.sae.b_enc.copy_(-torch.arange(D_SAE) * 0.2)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        if step == 150:
            trainer.since_fired[::3] += threshold
        trainer.step(torch.randn(8 if step % 3 else 16, D_IN, generator=generator))
    assert isinstance(trainer.stepper, StepperThatCounts)
    assert all(dead <= most for dead, most in trainer.stepper.dead)
    assert 0 < max(dead for dead, _ in trainer.stepper.dead) < D_SAE
    if threshold == 2000:
        assert trainer.stepper.dead[0] == (0, 0)


def test_decoder_rows_stay_at_unit_norm_when_asked():
    sae = TopKSAE(D_IN, D_SAE, K)
    sae.initialize_(0, torch.zeros(D_IN))
    config = TrainConfig(total_tokens=10_000, batch_size_tokens=16, lr=0.1)
    shape = SAEConfig(d_sae=D_SAE, k=K, normalize_decoder=True)
    trainer = SAETrainer(sae, shape, config, Budget(100, 1600))
    for _ in range(5):
        trainer.step(torch.randn(16, D_IN))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_inputs_are_scaled_to_unit_mean_square_and_the_bias_starts_at_their_median():
    sae = TopKSAE(D_IN, D_SAE, K)
    trainer = trainer_of(sae)
    x = torch.randn(4096, D_IN) * 7 + 30
    trainer.fit_input_(x, seed=0)
    assert (x * trainer.scale).pow(2).mean().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(sae.b_dec / trainer.scale, torch.full((D_IN,), 30.0), atol=1, rtol=0)
    expected = (x * trainer.scale).var(0, correction=0).sum().item()
    assert trainer.variance == pytest.approx(expected, rel=1e-4)


def test_a_planted_dictionary_is_recovered():
    """Of 48 directions in 24 dimensions, about 3 active at a time, the decoder finds most."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, 24, generator=generator), dim=1)

    def batch() -> torch.Tensor:
        code = torch.rand(512, 48, generator=generator) * (
            torch.rand(512, 48, generator=generator) < 1 / 16
        )
        return code @ directions

    sae = TopKSAE(24, 64, 4)
    config = TrainConfig(total_tokens=512 * 1500, batch_size_tokens=512)
    trainer = SAETrainer(sae, SAEConfig(d_sae=64, k=4), config, Budget(1500, 512 * 1500))
    trainer.fit_input_(batch(), seed=0)
    for _ in range(1500):
        result = trainer.step(batch())
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    mmcs = (directions @ rows.T).max(1).values.mean().item()
    assert mmcs > 0.95
    assert result.metrics().fvu.item() < 0.1


def test_the_default_schedule_warms_up_stays_constant_and_decays_over_the_last_fifth():
    config = TrainConfig(total_tokens=10_000, warmup_steps=100)
    lr = [scheduled_lr(config, 1.0, step, 1000) for step in range(1000)]
    assert lr[0] == pytest.approx(0.01)
    assert lr[99:800] == [1.0] * 701
    assert lr[900] == pytest.approx(0.5)
    assert lr[999] == pytest.approx(0.005)


def test_warm_up_takes_at_most_a_tenth_of_a_short_run():
    config = TrainConfig(total_tokens=10_000, warmup_steps=100)
    assert scheduled_lr(config, 1.0, 10, 100) == 1.0


def test_cosine_and_constant_schedules():
    cosine = TrainConfig(total_tokens=10_000, lr_schedule="cosine", warmup_steps=0)
    assert scheduled_lr(cosine, 1.0, 500, 1000) == pytest.approx(0.5)
    assert scheduled_lr(cosine, 1.0, 250, 1000) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    constant = TrainConfig(total_tokens=10_000, lr_schedule="constant", warmup_steps=0)
    assert scheduled_lr(constant, 1.0, 999, 1000) == 1.0


def test_the_default_learning_rate_of_long_runs_follows_the_paper():
    assert default_lr(2304, 2**14, 10**6) == pytest.approx(2e-4)
    assert default_lr(2304, 2**12, 10**6) == pytest.approx(4e-4)
    assert default_lr(2304, 2**14, 1000) > default_lr(2304, 2**14, 10_000) > 2e-4


def test_no_default_step_moves_a_coordinate_of_a_unit_row_by_more_than_a_tenth():
    assert default_lr(100, 64, 10) == pytest.approx(0.01)


def test_the_default_dead_threshold_is_a_share_of_the_run_up_to_ten_million_tokens():
    assert dead_threshold(TrainConfig(total_tokens=1_280_000), Budget(1, 1_280_000)) == 10_000
    assert dead_threshold(TrainConfig(total_tokens=10**10), Budget(1, 10**10)) == 10_000_000
    chosen = TrainConfig(total_tokens=10**9, dead_feature_threshold=5)
    assert dead_threshold(chosen, Budget(1, 10**9)) == 5
