"""What reading activations costs over the plain forward pass, and what more SAEs on a pass cost.

    python benchmarks/language_model_pass.py [--layers 8] [--layer 3] [--rows 16] [--ctx-len 128]

A Gemma-2 model with random weights is read at one layer in three ways that take turns: all of it by
`transformers` with a hook, its first layers alone, and through nnsight as runs do. Then short runs
of one, two and four SAEs on the embedded model share a pass.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from sae_engine.files import RunFolder
from sae_engine.model.language_model import LanguageModel
from sae_engine.preflight import embedded_model_folder
from sae_engine.presets import resolve_config
from sae_engine.schema.config import ModelConfig
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train_together
from sae_engine.training.member import Member

TURNS = 9
HIDDEN, VOCAB = 512, 4096


def write_model(folder: Path, layers: int) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN,
        num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
        query_pre_attn_scalar=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    for file in embedded_model_folder().glob("tokenizer*.json"):
        shutil.copy(file, folder)


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
        write_model(folder, options.layers)
        ids = torch.randint(3, VOCAB, (options.rows, options.ctx_len))
        ids[:, 0] = 2
        ways = ways_to_read(folder, options.layer, ids)
        results = [read() for read in ways.values()]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, read in ways.items():
                began = time.perf_counter()
                read()
                times[name].append(time.perf_counter() - began)
    plain = statistics.median(times["first layers alone"])
    print("| reading | ms | over the first layers alone |\n|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {median * 1e3:.1f} | {median / plain:.3f} |", flush=True)


def compare_sharing(tokens: int) -> None:
    """Seconds of training alone, without evaluation, for several SAEs on a pass."""
    print("\n| SAEs on a pass | s | tokens/s | LM, buffer, SAE share | s per further SAE |")
    print("|---|---|---|---|---|")
    first = 0.0
    for count in (1, 2, 4):
        seconds, shares = train_seconds(count, tokens)
        first = first or seconds
        more = f"{(seconds - first) / (count - 1):.1f}" if count > 1 else ""
        print(
            f"| {count} | {seconds:.1f} | {tokens / seconds:,.0f} | {shares} | {more} |", flush=True
        )


def train_seconds(count: int, tokens: int) -> tuple[float, str]:
    """From the first logged step to the last, and the shares that the last one tells."""
    never = 10**9
    every = {"eval_every": never, "ce_every": None, "save_every": never, "snapshot_every": None}
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
            if record.step >= last_step:  # what follows is evaluation
                names = ("lm_share", "buffer_share", "sae_share")
                return times[-1] - times[0], ", ".join(f"{record.values[n]:.0%}" for n in names)
    raise AssertionError("the runs ended before their last step")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--ctx-len", type=int, default=128)
    parser.add_argument(
        "--tokens", type=int, default=100_000, help="for the runs that share a pass"
    )
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, d {HIDDEN}, {options.layers} layers, read at {options.layer}, "
        f"{options.rows} x {options.ctx_len} tokens\n"
    )
    compare_reading(options)
    compare_sharing(options.tokens)


if __name__ == "__main__":
    main()
