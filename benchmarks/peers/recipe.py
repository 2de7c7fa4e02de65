"""Effect of each part of the recipe on our trainer, on the planted dictionary S1.

    python benchmarks/peers/recipe.py --data DIR                       # the table in LOG.md
    python benchmarks/peers/recipe.py --data DIR "lr=0.001,auxk=0.1"   # one recipe of your own

2,097,152 tokens, 2,048 steps; about a minute each on two cores. Without `lr`, the default is used;
`dead` is `dead_feature_threshold`, `tokens` shortens the run, `scale=0` turns input scaling off,
and `bias` (`mean`, `zero`) is the initial value of `b_dec` instead of the geometric median.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from compare import SIZES, parser
from planted import Exported, judge, plant
from torch import Tensor
from trainers import Feed, Task

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import geometric_median, total_variance
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import SAEConfig, TrainConfig

RECIPES = [
    "",
    "lr=0.0005",
    "lr=0.001",
    "lr=0.004",
    "lr=0.001,normalize=1",
    "lr=0.001,auxk=0",
    "auxk=1",
    "lr=0.001,dead=65536",
    "dead=262144",
    "lr=0.001,schedule=cosine",
    "normalize=1",
    "scale=0",
    "bias=mean",
    "bias=zero",
    "seed=1",
    "seed=2",
]


def run(data: Path, recipe: dict[str, str]) -> str:
    size = SIZES["S1"]
    planted = plant(data / "S1", size.d_in, size.num_directions, size.num_tokens)
    tokens = int(recipe.get("tokens", size.num_tokens))
    steps = tokens // size.batch
    feed = Feed(planted.train, Task("ours", "", size.d_sae, size.k, size.batch, steps))
    settings: dict[str, Any] = {"batch_size_tokens": size.batch}
    settings |= {"lr": float(recipe["lr"])} if "lr" in recipe else {}
    settings |= {"auxk_alpha": float(recipe["auxk"])} if "auxk" in recipe else {}
    settings |= {"dead_feature_threshold": int(recipe["dead"])} if "dead" in recipe else {}
    settings |= {"lr_schedule": recipe["schedule"]} if "schedule" in recipe else {}
    shape = SAEConfig(
        d_sae=size.d_sae, k=size.k, normalize_decoder=bool(int(recipe.get("normalize", "0")))
    )
    sae = TopKSAE(size.d_in, size.d_sae, size.k)
    trainer = SAETrainer(sae, shape, TrainConfig(**settings), Budget(steps, tokens))
    begin(trainer, torch.cat([feed.batch(i) for i in range(8)]), recipe)
    began = time.perf_counter()
    for batch in feed:
        trainer.step(batch, measured=False)
    seconds = time.perf_counter() - began
    trained = sae.folded(trainer.scale)
    W_enc = trained.W_enc.T.contiguous()
    b_enc = trained.b_enc - trained.b_dec @ W_enc
    result = judge(planted, Exported(W_enc, b_enc, trained.W_dec, trained.b_dec), size.k)
    return (
        f"| {trainer.peak_lr:.2g} | {result['fvu']:.4f} | {result['mmcs']:.4f} | "
        f"{result['dead']:.2%} | {seconds:.0f} s |"
    )


def begin(trainer: SAETrainer, x: Tensor, recipe: dict[str, str]) -> None:
    """Set scale, variance and initial weights from the first activations."""
    seed = int(recipe.get("seed", "0"))
    trainer.fit_input_(x, seed)
    if recipe.get("scale") == "0":
        trainer.scale, trainer.variance = 1.0, total_variance(x).item()
        trainer.sae.initialize_(seed, geometric_median(x[:8192]))
    if "bias" in recipe:
        starts = {"mean": x.mean(0) * trainer.scale, "zero": torch.zeros(x.shape[1])}
        trainer.sae.initialize_(seed, starts[recipe["bias"]])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("recipes", nargs="*", default=RECIPES)
    options = arguments.parse_args()
    print("| recipe | peak lr | FVU | MMCS | dead | time |\n|---|---|---|---|---|---|")
    for recipe in options.recipes:
        settings = dict(part.split("=") for part in recipe.split(",") if part)
        print(f"| {recipe or 'default'} {run(options.data, settings)}", flush=True)


if __name__ == "__main__":
    main()
