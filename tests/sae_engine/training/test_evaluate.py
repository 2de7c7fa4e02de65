import math

import pytest
import torch

from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import fvu
from sae_engine.schema.config import ModelConfig
from sae_engine.training import evaluate as module
from sae_engine.training.evaluate import (
    cross_entropy_metrics,
    measure_cross_entropy,
    reconstruction_metrics,
)
from tests.sae_engine.model.test_language_model import ids_of
from tests.sae_engine.sae.test_autoencoders import random_sae


def parts_and_metrics(*arguments, **more) -> tuple[list[tuple[int, int]], dict[str, float]]:
    parts: list[tuple[int, int]] = []
    found = measure_cross_entropy(*arguments, **more)
    while True:
        try:
            parts.append(next(found)[:2])
        except StopIteration as end:
            return parts, end.value


def identity_sae(d: int) -> TopKSAE:
    """Latents +e_i and -e_i reconstruct every vector exactly with k = d."""
    sae = TopKSAE(d, 2 * d, d)
    with torch.no_grad():
        rows = torch.cat([torch.eye(d), -torch.eye(d)])
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
    return sae.requires_grad_(False)


def constant_sae(d: int, value: torch.Tensor) -> TopKSAE:
    sae = TopKSAE(d, 4, 1)
    with torch.no_grad():
        sae.b_dec.copy_(value)
        sae.b_enc.fill_(-1)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("chunk", [3, 64, 1000])
def test_the_mean_has_fvu_one_and_a_copy_zero_for_any_chunking(monkeypatch, chunk):
    monkeypatch.setattr(module, "TOKENS_PER_CHUNK", chunk)
    x = torch.randn(200, 5) + torch.linspace(0, 300, 200)[:, None]  # chunk means differ widely
    assert reconstruction_metrics(constant_sae(5, x.mean(0)), x)["eval_fvu"] == pytest.approx(
        1, rel=1e-5
    )
    copied = reconstruction_metrics(identity_sae(5), x)
    assert copied["eval_fvu"] == pytest.approx(0, abs=1e-10)
    assert copied["eval_cosine_similarity"] == pytest.approx(1)
    assert copied["eval_l0"] == 5


def test_metrics_equal_their_definitions_over_the_whole_set():
    sae = random_sae(3).folded(1.0)
    x = torch.randn(500, 6) * 2 + 1
    code = sae.encode(x)
    x_hat = sae(x)
    got = reconstruction_metrics(sae, x)
    fvu = (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert got["eval_fvu"] == pytest.approx(fvu.item(), rel=1e-5)
    assert got["eval_l0"] == pytest.approx((code.acts > 0).sum(1).float().mean().item())
    fired = {int(i) for i in code.indices[code.acts > 0]}
    assert got["frac_alive"] == pytest.approx(len(fired) / sae.d_sae)


def test_cross_entropy_scores_of_lossless_zero_and_mean_reconstructions(model_folders):
    prefix = LanguageModel.load(ModelConfig(name=str(model_folders["gemma2"]), layer=1))
    model = prefix.full()
    ids = ids_of(rows=5)
    mean = prefix.activations(ids)[~prefix.special_mask(ids)].mean(0)
    lossless = cross_entropy_metrics(model, identity_sae(32), ids, mean)
    assert lossless["ce_delta"] == pytest.approx(0, abs=1e-5)
    assert lossless["ce_loss_score"] == pytest.approx(1, abs=1e-4)
    zero = cross_entropy_metrics(model, constant_sae(32, torch.zeros(32)), ids, mean)
    assert zero["ce_loss_score"] == pytest.approx(0, abs=1e-6)
    at_mean = cross_entropy_metrics(model, constant_sae(32, mean), ids, mean)
    assert at_mean["ce_loss_score_mean"] == pytest.approx(0, abs=1e-6)


def test_the_share_of_the_top_tokens_is_that_of_the_farthest_hundredth():
    x = torch.randn(250, 6) + 40
    x[[3, 99, 200]] += torch.tensor([[30.0], [20.0], [10.0]])
    distance = (x - x.mean(0)).pow(2).sum(1).sort(descending=True).values
    share = reconstruction_metrics(identity_sae(6), x)["top_token_share"]
    assert share == pytest.approx((distance[:3].sum() / distance.sum()).item(), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456])
def test_activations_that_are_all_the_same_have_no_fvu(value: float):
    x = torch.full((1001, 7), value)
    found = reconstruction_metrics(constant_sae(7, torch.zeros(7)), x)
    assert math.isnan(found["eval_fvu"])
    assert math.isnan(found["top_token_share"])
    assert math.isnan(fvu(x, x * 0.01).item())


class Ones(SpliceModel):
    """A language model whose activations are ones; its cross-entropy is 2 nats plus the mean
    difference from them.
    """

    def __init__(self) -> None: ...

    def cross_entropy(self, ids, replace=None, hook=0, at=None):
        x = torch.ones(8, 3)
        changed = x if replace is None else replace(x)
        return 8 * (2 + (changed - x).abs().mean().item()), 8


def test_a_score_relative_to_an_ablation_that_changes_nothing_is_not_defined():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    sae = constant_sae(3, torch.full((3,), 0.75))
    found = cross_entropy_metrics(Ones(), sae, ids, torch.ones(3))
    assert found["ce_delta"] == pytest.approx(0.25)
    assert found["ce_loss_score"] == pytest.approx(0.75)
    assert math.isnan(found["ce_loss_score_mean"])


@pytest.mark.parametrize(("num_rows", "num_parts"), [(1, 4), (1024, 4), (1025, 8), (3000, 12)])
def test_the_progress_counts_every_pass_through_the_model(num_rows: int, num_parts: int):
    ids = torch.zeros(num_rows, 4, dtype=torch.int64)  # 1,024 rows fill a pass
    sae = constant_sae(3, torch.zeros(3))
    parts, _ = parts_and_metrics(Ones(), sae, ids, torch.ones(3))
    assert parts == [(done, num_parts) for done in range(1, num_parts + 1)]


def test_only_the_given_positions_are_replaced_and_counted(model_folders):
    prefix = LanguageModel.load(ModelConfig(name=str(model_folders["llama"]), layer=1))
    model, ids = prefix.full(), ids_of(rows=3)
    at = ~prefix.special_mask(ids)
    at[:, 2:] = False
    zero = constant_sae(32, torch.zeros(32))
    found = cross_entropy_metrics(model, zero, ids, torch.ones(32), at=at)
    assert found["ce_loss_score"] == pytest.approx(0, abs=1e-6)
    seen: list[int] = []

    def replace(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x

    assert model.cross_entropy(ids, replace, 0, at)[1] == seen[0] == int(at.sum())
