import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_engine.sae.loss import auxk_loss, fvu, geometric_median, total_variance


def test_fvu_of_the_mean_is_one_and_of_a_copy_zero():
    x = torch.randn(50, 7) + 100
    assert fvu(x, x - x.mean(0)).item() == pytest.approx(1, rel=1e-5)
    assert fvu(x, x - x).item() == 0


def test_fvu_on_two_points_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # variance sum: 1 + 1
    x_hat = torch.tensor([[0.0, 1.0], [2.0, 0.0]])  # squared error: 1
    assert fvu(x, x - x_hat).item() == pytest.approx(0.5)


def test_total_variance_sums_over_coordinates():
    x = torch.tensor([[1.0, 10.0], [3.0, 10.0]])
    assert total_variance(x).item() == 1.0


def test_auxk_loss_is_the_error_over_the_residual_variance():
    residual = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert auxk_loss(residual, torch.zeros(2, 2)).item() == 1.0
    assert auxk_loss(residual, residual / 2).item() == pytest.approx(0.25)


def test_auxk_loss_and_its_gradient_are_zero_for_a_residual_without_variance():
    guess = torch.ones(3, 2, requires_grad=True)
    loss = auxk_loss(torch.full((3, 2), 0.5), guess)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(guess.grad, torch.zeros(3, 2))


def test_auxk_loss_sends_no_gradient_into_the_residual():
    residual = torch.randn(4, 3, requires_grad=True)
    guess = torch.randn(4, 3, requires_grad=True)
    auxk_loss(residual, guess).backward()
    assert residual.grad is None


def test_an_outlier_moves_the_mean_but_not_the_geometric_median():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1000.0, 1000.0]])
    median = geometric_median(x)
    assert median.norm() < 2
    assert x.mean(0).norm() > 200


@given(st.integers(0, 10_000))
def test_no_small_move_from_the_geometric_median_shortens_the_distances(seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(31, 3, generator=generator).double()
    median = geometric_median(x).double()
    total = (x - median).norm(dim=1).sum()
    for direction in torch.randn(8, 3, generator=generator).double():
        assert (x - (median + 0.05 * direction)).norm(dim=1).sum() >= total - 1e-4
