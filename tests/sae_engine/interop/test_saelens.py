"""SAELens itself reads our exports, and its SAEs compute the same here."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sae_engine.interop.export import export_saelens
from sae_engine.interop.load import load_pretrained
from sae_engine.presets import resolve_config
from sae_engine.sae.autoencoders import SAE
from tests.sae_engine.interop.test_export import published
from tests.sae_engine.sae.test_autoencoders import random_jumprelu, random_sae

OURS = {
    "topk": random_sae,
    "jumprelu": random_jumprelu,
    "by_pre_activation": partial(random_sae, ranks_by_norm=False),
}


def ours(kind: str) -> SAE:
    return OURS[kind](5, d_in=6, d_sae=40).folded(1.0)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `saelens_peer` has run."""
    folder = tmp_path_factory.mktemp("saelens")
    np.save(folder / "x.npy", torch.randn(200, 6, generator=torch.Generator().manual_seed(1)))
    config = resolve_config("tiny", {"model": {"layer": 2}})
    for kind in OURS:
        run = published(folder / "runs" / kind, ours(kind))
        run.config.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        export_saelens(run, folder / "ours" / kind)
    script = Path(__file__).with_name("saelens_peer.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def codes_of(sae: SAE, peer: Path) -> tuple[np.ndarray, np.ndarray]:
    """Dense codes and reconstructions of x.npy."""
    x = torch.from_numpy(np.load(peer / "x.npy"))
    code = sae.encode(x)
    z = torch.zeros(len(x), sae.d_sae).scatter(1, code.indices, code.acts)
    return z.numpy(), sae(x).numpy()


@pytest.mark.parametrize("kind", OURS)
def test_saelens_opens_an_export_and_computes_the_same(peer: Path, kind: str):
    z, x_hat = codes_of(ours(kind), peer)
    with np.load(peer / "ours" / kind / "codes.npz") as theirs:
        assert ((z > 0) == (theirs["z"] > 0)).all()
        np.testing.assert_allclose(z, theirs["z"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x_hat, theirs["x_hat"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["topk", "batchtopk", "checkpoint", "standard", "jumprelu", "uncentered", "gated"]
)
def test_an_sae_that_saelens_saved_computes_the_same_here(peer: Path, kind: str):
    got = load_pretrained(peer / "theirs" / kind)
    assert got.described.title == "SAELens"
    z, x_hat = codes_of(got.sae, peer)
    with np.load(peer / "theirs" / kind / "codes.npz") as theirs:
        assert ((z > 0) == (theirs["z"] > 0)).all()
        assert 1 < (z > 0).sum(1).mean() < 30
        largest = np.abs(theirs["x_hat"]).max()
        np.testing.assert_allclose(x_hat, theirs["x_hat"], rtol=0, atol=1e-6 * largest)
        # the scale of each latent may differ, because here its decoder row has norm 1
        np.testing.assert_allclose(of_largest(z), of_largest(theirs["z"]), rtol=1e-3, atol=1e-5)


def test_topk_by_pre_activation_keeps_its_units(peer: Path):
    """Neither codes nor reconstructions change, though its decoder rows differ in norm."""
    sae = load_pretrained(peer / "theirs" / "plain_topk").sae
    norms = sae.decoder_norms
    assert norms.max() > 2 * norms.min()
    z, x_hat = codes_of(sae, peer)
    with np.load(peer / "theirs" / "plain_topk" / "codes.npz") as theirs:
        np.testing.assert_allclose(z, theirs["z"], rtol=0, atol=1e-6 * theirs["z"].max())
        largest = np.abs(theirs["x_hat"]).max()
        np.testing.assert_allclose(x_hat, theirs["x_hat"], rtol=0, atol=1e-6 * largest)


def test_negative_activations_become_latents_of_their_own(peer: Path):
    got = load_pretrained(peer / "theirs" / "abstopk")
    assert ["latent i + 40" in note for note in got.notes] == [True]
    z, x_hat = codes_of(got.sae, peer)
    with np.load(peer / "theirs" / "abstopk" / "codes.npz") as theirs:
        assert (theirs["z"] < 0).any()
        signed = z[:, :40] - z[:, 40:]
        np.testing.assert_allclose(signed, theirs["z"], rtol=0, atol=1e-6 * z.max())
        largest = np.abs(theirs["x_hat"]).max()
        np.testing.assert_allclose(x_hat, theirs["x_hat"], rtol=0, atol=1e-6 * largest)


def of_largest(z: np.ndarray) -> np.ndarray:
    """Activations as shares of each latent's maximum."""
    return z / np.maximum(z.max(0), 1e-9)
