import pytest
import torch

from sae_engine.model.language_model import LanguageModel
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.schema.config import ModelConfig
from sae_engine.training import evaluate as module
from sae_engine.training.evaluate import cross_entropy_metrics, reconstruction_metrics
from tests.sae_engine.model.test_language_model import ids_of
from tests.sae_engine.sae.test_autoencoders import random_sae


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
