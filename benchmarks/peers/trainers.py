"""One trainer on one size, in its own process: `python trainers.py '{"trainer": ...}'`.

Every trainer reads the same bytes in the same order. A step is the time between two requests for a
batch, so it includes reading, forward and backward pass, optimizer and the trainer's bookkeeping.
Peers use their own trainers; only the activations come from here.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import json
import resource
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from planted import Exported, Planted, judge
from torch import Tensor, nn


class Task(NamedTuple):
    """A trainer's task. `lr` None is the trainer's default; `tuned` turns on warm-up, linear decay
    and AuxK in the trainers that have them.
    """

    trainer: str
    data: str
    d_sae: int
    k: int
    batch: int
    steps: int
    lr: float | None = None
    tuned: bool = False
    judged: bool = False
    seed: int = 0


WARM_UP, DEAD_TOKENS = 100, 262_144
WARM_STEPS = 0.1
"""Share of the steps that are not timed."""


class Feed:
    """Batches of the file, read one by one, wrapping around. Records the time of each request in
    the latest iteration.
    """

    def __init__(self, path: Path, task: Task) -> None:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, _ = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        self._file = path.open("rb", buffering=0)
        self._task = task
        self.times: list[float] = []
        self.peak = 0
        """Peak memory until the last request, so without exporting."""

    def __iter__(self) -> Iterator[Tensor]:
        self.times = []  # a trainer may have iterated before, to measure norms
        for number in range(self._task.steps):
            self.times.append(time.perf_counter())
            self.peak = peak_bytes()
            yield self.batch(number)
        self.times.append(time.perf_counter())

    def batch(self, number: int) -> Tensor:
        rows, width = self._task.batch, self.shape[1]
        values = np.empty((rows, width), np.float32)
        place = number % (self.shape[0] // rows)
        self._file.seek(self._start + place * values.nbytes)
        self._file.readinto(values.data.cast("B"))
        return torch.from_numpy(values)


def ours(task: Task, feed: Feed) -> Exported:
    from sae_engine.sae.autoencoders import TopKSAE
    from sae_engine.sae.trainer import Budget, SAETrainer
    from sae_engine.schema.config import SAEConfig, TrainConfig

    sae = TopKSAE(feed.shape[1], task.d_sae, task.k)
    # The default threshold is a share of the run, so in a few timed steps all latents would soon be
    # dead. That of the peers is 10M tokens or many steps, so none of theirs die while timed.
    dead = None if task.judged else 10_000_000
    config = TrainConfig(batch_size_tokens=task.batch, lr=task.lr, dead_feature_threshold=dead)
    budget = Budget(task.steps, task.steps * task.batch)
    trainer = SAETrainer(sae, SAEConfig(d_sae=task.d_sae, k=task.k), config, budget)
    trainer.fit_input_(torch.cat([feed.batch(i) for i in range(8)]), task.seed)
    for batch in feed:
        trainer.step(batch, measured=False)
    trained = sae.folded(trainer.scale)
    W_enc = trained.W_enc.T.contiguous()
    return Exported(W_enc, trained.b_enc - trained.b_dec @ W_enc, trained.W_dec, trained.b_dec)


def dense(task: Task, feed: Feed) -> Exported:
    """The textbook version: dense matmuls, autograd, Adam; no AuxK, unconstrained decoder rows."""
    rows = nn.functional.normalize(torch.randn(task.d_sae, feed.shape[1]), dim=1)
    W_enc, W_dec = nn.Parameter(rows.T.clone()), nn.Parameter(rows.clone())
    b_enc = nn.Parameter(torch.zeros(task.d_sae))
    b_dec = nn.Parameter(feed.batch(0).mean(0))
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], task.lr or sparsify_lr(task))
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: shape_of(task, step))
    for x in feed:
        pre = torch.relu((x - b_dec) @ W_enc + b_enc)
        acts, indices = pre.topk(task.k, dim=-1, sorted=False)
        x_hat = torch.zeros_like(pre).scatter(1, indices, acts) @ W_dec + b_dec
        (x_hat - x).pow(2).sum(-1).mean().backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    return Exported(W_enc, b_enc - b_dec @ W_enc, W_dec, b_dec)


def sparsify_lr(task: Task) -> float:
    return 2e-4 / (task.d_sae / 2**14) ** 0.5


def shape_of(task: Task, step: int) -> float:
    """The learning rate's factor: warm-up, constant, linear decay over the last fifth."""
    if not task.tuned:
        return 1.0
    return min(1.0, (step + 1) / WARM_UP, (task.steps - step) / (task.steps / 5))


def sparsify(task: Task, feed: Feed) -> Exported:
    """EleutherAI's Trainer, on a fake language model that emits our batches."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    batches = iter(feed)

    class StandIn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hook = nn.Identity()
            self.config = types.SimpleNamespace(num_hidden_layers=1)
            self.device = torch.device("cpu")
            self.dummy_inputs = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
            self.emits = False

        @property
        def base_model(self) -> nn.Module:
            return self

        def forward(self, input_ids: Tensor) -> Tensor:
            shape = (*input_ids.shape, feed.shape[1])
            return self.hook(next(batches)[None] if self.emits else torch.zeros(shape))

    class Ids(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return task.steps

        def __getitem__(self, place: int) -> dict[str, Tensor]:
            if place >= task.steps:
                raise IndexError
            return {"input_ids": torch.zeros(task.batch, dtype=torch.long)}

    uses_adam = task.tuned or task.trainer == "sparsify-adam"
    config = TrainConfig(
        SparseCoderConfig(num_latents=task.d_sae, k=task.k),
        batch_size=1,
        optimizer="adam" if uses_adam else "signum",
        lr=task.lr,
        lr_warmup_steps=WARM_UP if task.tuned else min(1000, task.steps // 2),
        auxk_alpha=1 / 32 if task.tuned else 0.0,
        dead_feature_threshold=DEAD_TOKENS if task.tuned else 10_000_000,
        hookpoints=["hook"],
        init_seeds=[task.seed],
        save_every=10**9,
        log_to_wandb=False,
    )
    model = StandIn()
    trainer = Trainer(config, Ids(), model)
    trainer.save = lambda: feed.times.append(time.perf_counter())
    model.emits = True
    trainer.fit()
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, ScheduleFreeWrapper):
            optimizer.eval()
    sae = trainer.saes["hook"]
    W_enc = sae.encoder.weight.T.contiguous()
    return Exported(W_enc, sae.encoder.bias - sae.b_dec @ W_enc, sae.W_dec, sae.b_dec)


def sae_lens(task: Task, feed: Feed) -> Exported:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shape = TopKTrainingSAEConfig(
        d_in=feed.shape[1], d_sae=task.d_sae, k=task.k, dtype="float32", device="cpu"
    )
    sae = TopKTrainingSAE(shape)
    lr = task.lr or 3e-4
    config = SAETrainerConfig(
        total_training_samples=task.steps * task.batch,
        train_batch_size_samples=task.batch,
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=WARM_UP if task.tuned else 0,
        lr_decay_steps=task.steps // 5 if task.tuned else 0,
        dead_feature_window=max(1, DEAD_TOKENS // task.batch) if task.tuned else 1000,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(config, sae, iter(feed)).fit()
    feed.times.append(time.perf_counter())
    rescales = sae.cfg.rescale_acts_by_decoder_norm
    norm = sae.W_dec.norm(dim=1) if rescales else torch.ones(task.d_sae)
    center = sae.b_dec @ sae.W_enc if sae.cfg.apply_b_dec_to_input else 0
    return Exported(
        sae.W_enc * norm, (sae.b_enc - center) * norm, sae.W_dec / norm[:, None], sae.b_dec
    )


def dictionary_learning(task: Task, feed: Feed) -> Exported:
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    made: list[Any] = []

    def make(**settings: Any) -> Any:
        trainer = TopKTrainer(**settings)
        if task.tuned:
            trainer.dead_feature_threshold = DEAD_TOKENS
        made.append(trainer)
        return trainer

    settings = {
        "trainer": make, "steps": task.steps, "activation_dim": feed.shape[1],
        "dict_size": task.d_sae, "k": task.k, "layer": 0, "lm_name": "none", "lr": task.lr,
        "warmup_steps": WARM_UP if task.tuned else min(1000, task.steps // 2),
        "decay_start": int(task.steps * 0.8) if task.tuned else None, "seed": task.seed,
        "device": "cpu",
    }  # fmt: skip
    trainSAE(feed, [settings], steps=task.steps, normalize_activations=True, device="cpu")
    ae = made[0].ae
    W_enc = ae.encoder.weight.T.contiguous()
    W_dec = ae.decoder.weight.T.contiguous()
    return Exported(W_enc, ae.encoder.bias - ae.b_dec @ W_enc, W_dec, ae.b_dec)


TRAINERS: dict[str, Callable[[Task, Feed], Exported]] = {
    "ours": ours,
    "dense": dense,
    "sparsify": sparsify,
    "sparsify-adam": sparsify,
    "sae-lens": sae_lens,
    "dictionary-learning": dictionary_learning,
}
IMPORTS = {
    "ours": "import sae_engine.sae.trainer",
    "dense": "pass",
    "sparsify": "import sparsify",
    "sparsify-adam": "import sparsify",
    "sae-lens": "import sae_lens.training.sae_trainer",
    "dictionary-learning": "import dictionary_learning.training",
}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    warnings.filterwarnings("ignore")
    task = Task(**json.loads(sys.argv[1]))
    exec(f"import torch._dynamo; {IMPORTS[task.trainer]}")  # torch's optimizers import _dynamo
    torch.manual_seed(task.seed)
    planted = Planted(*(Path(task.data) / f"{name}.npy" for name in Planted._fields))
    feed = Feed(planted.train, task)
    before = resident_bytes()
    exported = TRAINERS[task.trainer](task, feed)
    steps = np.diff(feed.times)[max(1, round(task.steps * WARM_STEPS)) :]
    result = {
        "tokens_per_second": task.batch * len(steps) / float(sum(steps)),
        "step_ms": 1000 * statistics.median(steps),
        "peak_mb": (feed.peak - before) / 2**20,
    }
    if task.judged:
        result |= judge(planted, exported, task.k)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
