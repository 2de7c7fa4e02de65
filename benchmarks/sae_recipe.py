"""Effect of layer, batch, learning rate and more on a short run on the embedded model.

    python benchmarks/sae_recipe.py                                # the table in LOG.md
    python benchmarks/sae_recipe.py "layer=2,batch=512,lr=0.004"   # one recipe of your own

Activations are extracted once per layer (about a minute each on two cores), and every recipe trains
on the same tokens, from two initializations. Prints one line per recipe, of the first: held-out
FVU, share of latents alive, seconds; and how many of its latents the second finds again: mean over
live latents of the largest cosine with one of the second's, and the share above .7.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _common import again, machine, seconds, unit_rows
from numpy.typing import NDArray

from sae_engine.activations.feed import TextFeed
from sae_engine.activations.stream import ActivationStream
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import ModelConfig, RunConfig, SAEConfig, TrainConfig
from sae_engine.training.evaluate import reconstruction_metrics

TOKENS = 500_000
HELDOUT_TOKENS = 50_000
RECIPES = [
    "layer=3,batch=1024,lr=0.00214",
    "layer=2,batch=1024,lr=0.00214",
    "layer=2,batch=1024,lr=0.004",
    "layer=2,batch=512,lr=0.0018",
    "layer=2,batch=512,lr=0.0018,normalize=True",
    "layer=2,batch=512,lr=0.004",
    "layer=2,batch=512,lr=0.008",
]


@cache
def activations(layer: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shuffled training activations and held-out ones, [tokens, d_in] each."""
    config = RunConfig(model=ModelConfig(layer=layer))
    feed = TextFeed([config])
    stream = ActivationStream(feed.open_source, batch_size=512, seed=0)
    train = torch.cat([next(stream)[0] for _ in range(tokens // 512)])
    with TemporaryDirectory() as folder:
        held = feed.open_heldout(HELDOUT_TOKENS, Path(folder) / "heldout")
        heldout = held.read(0, HELDOUT_TOKENS).clone()
    return train, heldout


def run(
    *, layer: int = 2, tokens: int = TOKENS, batch: int = 512, d_sae: int = 2048, **more: Any
) -> str:
    train, heldout = activations(layer, tokens)
    trainer, taken = trained(train, d_sae, batch, seed=0, **more)
    other, _ = trained(train, d_sae, batch, seed=1, **more)
    metrics = reconstruction_metrics(trainer.sae.folded(trainer.scale), heldout)
    found = again(live_directions(trainer, heldout), live_directions(other, heldout))
    return (
        f"lr {trainer.peak_lr:.2g}  FVU {metrics['eval_fvu']:.4f}  "
        f"alive {metrics['frac_alive']:.4f}  {taken:.0f} s  {found}"
    )


def trained(
    train: torch.Tensor,
    d_sae: int,
    batch: int,
    *,
    seed: int,
    k: int = 32,
    lr: float | None = None,
    normalize: bool = False,
    tied: bool = False,
    dead: int | None = None,
    auxk_alpha: float = 1 / 32,
    median: bool = True,
) -> tuple[SAETrainer, float]:
    """A trainer after all steps, and their seconds; b_dec begins at the median or at zero."""
    shape = SAEConfig(d_sae=d_sae, k=k, normalize_decoder=normalize, tied_weights=tied)
    config = TrainConfig(
        total_tokens=len(train),
        batch_size_tokens=batch,
        lr=lr,
        dead_feature_threshold=dead,
        auxk_alpha=auxk_alpha,
    )
    steps = len(train) // batch
    sae = TopKSAE(train.shape[1], d_sae, k, tied=tied)
    trainer = SAETrainer(sae, shape, config, Budget(steps, steps * batch))
    trainer.fit_input_(train[:16_384], seed=seed)
    if not median:
        sae.b_dec.data.zero_()

    def train_all() -> None:
        for i in range(steps):
            trainer.step(train[i * batch : (i + 1) * batch])

    return trainer, seconds(train_all)


@torch.no_grad()
def live_directions(trainer: SAETrainer, heldout: torch.Tensor) -> NDArray[np.float32]:
    """[live latents, d_in] unit decoder rows of the latents that fire on held-out text."""
    sae = trainer.sae.folded(trainer.scale)
    fires = torch.zeros(sae.d_sae, dtype=torch.bool)
    for part in heldout.split(4096):
        code = sae.encode(part)
        fires[code.indices[code.acts > 0]] = True
    return unit_rows(sae.W_dec[fires].numpy())


def main() -> None:
    print(machine())
    for recipe in sys.argv[1:] or RECIPES:
        settings = dict(part.split("=") for part in recipe.split(","))
        values: dict[str, Any] = {name: _value(text) for name, text in settings.items()}
        print(f"{recipe:36s} {run(**values)}", flush=True)


def _value(text: str) -> int | float | bool:
    if text in ("True", "False"):
        return text == "True"
    return float(text) if "." in text or "e" in text else int(text)


if __name__ == "__main__":
    main()
