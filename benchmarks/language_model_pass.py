"""Overhead of reading activations over a plain forward pass, and of more SAEs on one pass.

    python benchmarks/language_model_pass.py [--layers 8] [--layer 3] [--rows 16] [--ctx-len 128]

Reads one layer of a Gemma-2 model with random weights in three alternating ways: the whole model in
`transformers` with a hook, its first layers alone, and through nnsight as runs do. Then short runs
on the embedded model train one, two and four SAEs on one pass.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import NEVER, machine, parser, seconds, write_gemma
from transformers import AutoModelForCausalLM

from sae_engine.files import RunFolder
from sae_engine.model.language_model import LanguageModel
from sae_engine.presets import resolve_config
from sae_engine.schema.config import ModelConfig
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train_together
from sae_engine.training.member import Member

TURNS = 9
HIDDEN, VOCAB = 512, 4096


def ways_to_read(
    folder: Path, layer: int, ids: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions that return the same activations [rows, ctx, d_in]."""
    whole = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    short = AutoModelForCausalLM.from_pretrained(
        folder, num_hidden_layers=layer + 1, attn_implementation="eager"
    ).model
    ours = LanguageModel.load(ModelConfig(name=str(folder), layer=layer, device="cpu"))

    def hooked(module: torch.nn.Module, run: Callable[[], object]) -> torch.Tensor:
        kept: list[Any] = []
        handle = module.register_forward_hook(lambda _module, _args, out: kept.append(out))
        with torch.no_grad():
            run()
        handle.remove()
        return kept[0]

    return {
        "whole model, hook": lambda: hooked(
            whole.model.layers[layer], lambda: whole(ids, use_cache=False)
        ),
        "first layers alone": lambda: hooked(
            short.layers[layer], lambda: short(ids, use_cache=False)
        ),
        "ours, through nnsight": lambda: ours.activations(ids),
    }


def compare_reading(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_gemma(
            folder, vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN,
            num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=4,
            head_dim=64, query_pre_attn_scalar=64,
        )  # fmt: skip
        ids = torch.randint(3, VOCAB, (options.rows, options.ctx_len))
        ids[:, 0] = 2
        ways = ways_to_read(folder, options.layer, ids)
        results = [read() for read in ways.values()]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, read in ways.items():
                times[name].append(seconds(read))
    plain = statistics.median(times["first layers alone"])
    print("| reading | ms | over the first layers alone |\n|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {median * 1e3:.1f} | {median / plain:.3f} |", flush=True)


def compare_sharing(tokens: int) -> None:
    """Print the seconds of training, without evaluation, for several SAEs on a pass."""
    print("\n| SAEs on a pass | s | tokens/s | LM, buffer, SAE share | s per further SAE |")
    print("|---|---|---|---|---|")
    first = 0.0
    for count in (1, 2, 4):
        taken, shares = train_seconds(count, tokens)
        first = first or taken
        more = f"{(taken - first) / (count - 1):.1f}" if count > 1 else ""
        print(f"| {count} | {taken:.1f} | {tokens / taken:,.0f} | {shares} | {more} |", flush=True)


def train_seconds(count: int, tokens: int) -> tuple[float, str]:
    """Seconds from the first logged step to the last, and the last one's shares of time."""
    every = {"eval_every": NEVER, "ce_every": None, "save_every": NEVER, "snapshot_every": None}
    tree = {"train": {"total_tokens": tokens, **every}}
    configs = [resolve_config("tiny", tree | {"seed": seed}) for seed in range(count)]
    last_step = tokens // configs[0].train.batch_size_tokens
    times: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        members = [
            Member(config, RunFolder(Path(scratch) / str(number)))
            for number, config in enumerate(configs)
        ]
        for number, record in train_together(members):
            if number != count - 1 or not isinstance(record, MetricsRecord):
                continue
            times.append(time.perf_counter())
            if record.step >= last_step:  # evaluation follows
                names = ("lm_share", "buffer_share", "sae_share")
                return times[-1] - times[0], ", ".join(f"{record.values[n]:.0%}" for n in names)
    raise AssertionError("the runs ended before their last step")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--layer", type=int, default=3)
    arguments.add_argument("--rows", type=int, default=16)
    arguments.add_argument("--ctx-len", type=int, default=128)
    arguments.add_argument(
        "--tokens", type=int, default=100_000, help="for the runs that share a pass"
    )
    options = arguments.parse_args()
    print(
        f"{machine()}, d {HIDDEN}, {options.layers} layers, read at {options.layer}, "
        f"{options.rows} x {options.ctx_len} tokens\n"
    )
    compare_reading(options)
    compare_sharing(options.tokens)


if __name__ == "__main__":
    main()
