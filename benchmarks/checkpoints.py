"""How long saving a checkpoint holds training up.

    python benchmarks/checkpoints.py [--d-in 768] [--d-sae 16384] [--folder /shared/tmp]

Trains an SAE on random activations and saves checkpoints: in the foreground, and while training
goes on. Prints the size of a checkpoint, the seconds of a step, the seconds that a save takes from
training in the foreground and behind (until `save` returns, and what steps are slower by while it
is written), and the seconds until it is published.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from _common import machine, parser, seconds

from sae_engine.activations.stream import StreamState
from sae_engine.files import RunFolder
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import SAEConfig, TrainConfig
from sae_engine.text.packing import Cursor
from sae_engine.training.checkpoint import CheckpointWriter, TrainState, save_checkpoint

BATCH = 1024
REPEATS = 5
STATE = TrainState(
    0, 0, 0.0, 1.0, 1.0, 1.0, 0, math.inf, StreamState(0, 0, Cursor(0, 0)), "benchmark"
)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--d-in", type=int, default=768)
    arguments.add_argument("--d-sae", type=int, default=16_384)
    arguments.add_argument("--folder", type=Path, help="on the disk to measure")
    chosen = arguments.parse_args()
    print(machine())
    shape = SAEConfig(d_sae=chosen.d_sae, k=32)
    sae = TopKSAE(chosen.d_in, chosen.d_sae, 32)
    trainer = SAETrainer(sae, shape, TrainConfig(), Budget(10_000, 10_000 * BATCH))
    batch = torch.randn(BATCH, chosen.d_in)
    trainer.fit_input_(batch, seed=0)

    def step() -> float:
        return seconds(lambda: trainer.step(batch))

    usual = median([step() for _ in range(12)][2:])
    with TemporaryDirectory(dir=chosen.folder) as path:
        folder = RunFolder(path)
        foreground = [
            seconds(lambda: save_checkpoint(folder, trainer.tensors(), STATE))
            for _ in range(REPEATS)
        ]
        writer = CheckpointWriter(folder)
        behind: list[float] = []
        published: list[float] = []
        for _ in range(REPEATS):
            folder.checkpoint.unlink(missing_ok=True)
            began = time.perf_counter()
            held_up = seconds(lambda: writer.save(trainer, STATE))
            while not folder.checkpoint.exists():
                held_up += step() - usual
            published.append(time.perf_counter() - began)
            behind.append(held_up)
        writer.wait()
        size = folder.checkpoint.stat().st_size / 2**20
    print(
        f"checkpoint {size:.0f} MiB, step {usual:.3f} s, foreground {median(foreground):.2f} s, "
        f"behind {median(behind):.2f} s, published after {median(published):.2f} s"
    )


if __name__ == "__main__":
    main()
