"""Throughput from text to a trained SAE on a GPU, compared with the language model's matmuls alone.

    python benchmarks/gpu_end_to_end.py [--d-sae 16384 65536] [--k 64] [--batch 4096]
    python benchmarks/gpu_end_to_end.py --device cpu --hidden 64 --layer 2 --vocab 4096 \\
        --d-sae 256 --k 16 --batch 256 --ctx-len 128 --steps 6   # tests the script itself

The model is Gemma-2-2b's configuration with random weights, read at layer 12, on random tokens. The
bound is the time of the layers' matmuls up to the hook, at the rate that bfloat16 matmuls of the
MLP's shapes reach on the same GPU in the same run. Prints tokens/s of the language model with eager
attention and with the attention that runs use, of the SAE's step, and of everything together as in
a run; if SAELens is installed, also of its trainer's step on the same GPU.

Not yet run on a GPU, so there are no results.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from _common import parser
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from sae_engine.activations.stream import ActivationStream, extract, rows_per_block
from sae_engine.model.attention import EAGER, choose_attention
from sae_engine.model.language_model import LanguageModel
from sae_engine.preflight import embedded_model_folder
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import ModelConfig, SAEConfig, TrainConfig
from sae_engine.sizes import TOKENS_PER_FORWARD
from sae_engine.text.packing import Cursor
from sae_engine.training.clock import Stopwatch, open_timer

TURNS = 5
BOS = 2


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Median of a few calls, after one that compiles and selects algorithms."""
    work()
    times: list[float] = []
    for _ in range(TURNS):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class RandomText:
    """A source of activations of random tokens, for `ActivationStream`."""

    def __init__(self, model: LanguageModel, ctx_len: int) -> None:
        self._model, self._ctx_len = model, ctx_len
        self._random = np.random.default_rng(0)
        self.cursor = Cursor()
        self.lm_call = Stopwatch(open_timer(model.device))

    def rows(self, count: int) -> Tensor:
        ids = self._random.integers(3, self._model.vocab_size, (count, self._ctx_len))
        ids[:, 0] = BOS
        return torch.from_numpy(ids)

    def next_block(self) -> list[Tensor]:
        rows = self.rows(rows_per_block(self._ctx_len))
        return extract(self._model, rows, time_call=self.lm_call)


def new_model(options: argparse.Namespace, dtype: torch.dtype, attention: str) -> LanguageModel:
    """A model of the layers up to the hook, with random weights."""
    config = gemma(options)
    config._attn_implementation = attention
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(options.device):
        model = Gemma2Model(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    where = ModelConfig(name="random Gemma-2", layer=options.layer, device=options.device)
    return LanguageModel([where], model, tokenizer)


def gemma(options: argparse.Namespace) -> Gemma2Config:
    return Gemma2Config(
        vocab_size=options.vocab, hidden_size=options.hidden, intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layer + 1, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256 if options.hidden == 2304 else 16, pad_token_id=0, eos_token_id=1,
        bos_token_id=BOS,
    )  # fmt: skip


def bound(model: LanguageModel, dtype: torch.dtype) -> float:
    """Tokens/s if there were only the layers' matmuls, at the rate of the MLP's shapes."""
    layers: Any = model._model.layers
    linears = [m for m in layers.modules() if isinstance(m, nn.Linear)]
    operations = 2 * sum(m.weight.numel() for m in linears)
    mlp = layers[0].mlp
    x = torch.randn(TOKENS_PER_FORWARD, model.d_in, device=model.device, dtype=dtype)
    up, down = mlp.up_proj.weight, mlp.down_proj.weight
    taken = median_seconds(model.device, lambda: (x @ up.T) @ down.T)
    rate = 2 * TOKENS_PER_FORWARD * (up.numel() + down.numel()) / taken
    print(f"bfloat16 matmuls of the MLP's shapes: {rate / 1e12:.1f} TFLOP/s")
    return rate / operations


def model_tokens_per_second(model: LanguageModel, ctx_len: int) -> float:
    source = RandomText(model, ctx_len)
    ids = source.rows(max(1, TOKENS_PER_FORWARD // ctx_len))
    return ids.numel() / median_seconds(model.device, lambda: extract(model, ids))


def new_trainer(options: argparse.Namespace, d_in: int, d_sae: int, steps: int) -> SAETrainer:
    sae = TopKSAE(d_in, d_sae, options.k).to(options.device)
    config = TrainConfig(batch_size_tokens=options.batch, dead_feature_threshold=10**9)
    return SAETrainer(
        sae, SAEConfig(d_sae=d_sae, k=options.k), config, Budget(steps, steps * options.batch)
    )


def train(model: LanguageModel, options: argparse.Namespace, d_sae: int) -> dict[str, float]:
    """Tokens/s of everything and of the SAE's step alone, and the model's share of the time."""
    warm_up = max(2, options.steps // 5)
    trainer = new_trainer(options, model.d_in, d_sae, options.steps + warm_up)
    source = RandomText(model, options.ctx_len)
    stream = ActivationStream(lambda _cursor: source, batch_size=options.batch, seed=0)
    trainer.fit_input_(stream.first_window[0], 0)
    for _ in range(warm_up):
        trainer.step(next(stream)[0], measured=False)
    synchronize(model.device)
    began, model_seconds = time.perf_counter(), source.lm_call.seconds()
    for _ in range(options.steps):
        trainer.step(next(stream)[0], measured=False)
    synchronize(model.device)
    taken = time.perf_counter() - began
    model_share = (source.lm_call.seconds() - model_seconds) / taken
    batch = next(stream)[0]
    step = median_seconds(model.device, lambda: trainer.step(batch, measured=False))
    return {
        "all": options.steps * options.batch / taken,
        "step": options.batch / step,
        "model_share": model_share,
    }


def sae_lens_tokens_per_second(options: argparse.Namespace, d_in: int, d_sae: int) -> float:
    """Tokens/s of the steps of SAELens's trainer on one batch on the device."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer as Theirs

    device = torch.device(options.device)
    shape: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "k": options.k}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shape, dtype="float32", device=options.device))
    config = SAETrainerConfig(
        total_training_samples=options.steps * options.batch,
        train_batch_size_samples=options.batch, lr=3e-4, lr_end=3e-5, lr_warm_up_steps=0,
        lr_decay_steps=0, dead_feature_window=10**6, device=options.device, autocast=True,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    batch = torch.randn(options.batch, d_in, device=device)
    times: list[float] = []

    def batches() -> Iterator[Tensor]:
        while True:
            synchronize(device)
            times.append(time.perf_counter())
            yield batch

    Theirs(config, sae, batches()).fit()
    steps = np.diff(times)
    return options.batch / float(np.median(steps[len(steps) // 5 :]))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--d-sae", type=int, nargs="+", default=[16_384, 65_536])
    arguments.add_argument("--k", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=4096)
    arguments.add_argument("--steps", type=int, default=100)
    arguments.add_argument("--ctx-len", type=int, default=1024)
    arguments.add_argument("--layer", type=int, default=12)
    arguments.add_argument("--hidden", type=int, default=2304)
    arguments.add_argument("--vocab", type=int, default=256_000)
    arguments.add_argument("--device", default="cuda")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA device, and PyTorch finds none.", file=sys.stderr)
        sys.exit(2)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    print(f"{name}, torch {torch.__version__}, d {options.hidden}, layer {options.layer}")

    dtype = torch.bfloat16
    chosen = choose_attention(gemma(options), options.ctx_len, dtype, device)
    rates: dict[str, float] = {}
    for attention in dict.fromkeys([EAGER, chosen]):
        model = new_model(options, dtype, attention)
        rates[attention] = model_tokens_per_second(model, options.ctx_len)
    most = bound(model, dtype)
    print(f"the layers' matmuls alone: {most:,.0f} tokens/s\n")
    print("| part | d_sae | tokens/s | share of the matmuls' rate |\n|---|---|---|---|")

    def line(part: str, d_sae: int | str, rate: float) -> None:
        print(f"| {part} | {d_sae} | {rate:,.0f} | {rate / most:.2f} |", flush=True)

    for attention, rate in rates.items():
        line(f"language model, {attention}", "", rate)
    for d_sae in options.d_sae:
        found = train(model, options, d_sae)
        line(f"all, {found['model_share']:.0%} of it the model", d_sae, found["all"])
        line("SAE step", d_sae, found["step"])
        if find_spec("sae_lens"):
            theirs = sae_lens_tokens_per_second(options, model.d_in, d_sae)
            line("SAELens's step", d_sae, theirs)


if __name__ == "__main__":
    main()
