"""Gemma-2-2b's true configuration at reduced depth, random weights: an SAE is trained on it on the
CPU, and the memory that this takes is compared with the estimate.

    python benchmarks/gemma_rehearsal.py                        # about 10 GiB of memory
    python benchmarks/gemma_rehearsal.py --hidden 256 --vocab 16000 --d-sae 2048   # a small try

Prints, phase by phase, the largest resident memory over what the program itself takes, which is
what it has after a small run. The model's files are mapped while they are read, and a mapped page
counts; so the comparison begins when the model is loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sae_engine.estimate import estimate
from sae_engine.preflight import embedded_model_folder
from sae_engine.presets import resolve_config

GIB = 2**30
TOLERANCE = 0.15
MOST_BYTES = 20 * GIB


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """Gemma-2-2b's configuration with other sizes where asked for, and random weights."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        vocab_size=options.vocab,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    for file in embedded_model_folder().glob("tokenizer*.json"):
        shutil.copy(file, folder)


def run_config(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    steps = options.steps
    return {
        "model": {"name": str(folder), "layer": options.layer, "device": "cpu"},
        "data": {"ctx_len": options.ctx_len, "heldout_tokens": 4096},
        "sae": {"d_sae": options.d_sae, "k": options.k},
        "train": {
            "total_tokens": steps * options.batch,
            "batch_size_tokens": options.batch,
            "log_every": 1,
            "eval_every": max(1, steps // 2),
            "eval_tokens": 4096,
            "ce_tokens": 4096,
            "save_every": max(1, steps // 2),
            "snapshot_every": None,
        },
        "index": {"tokens": 4096, "snapshot_tokens": 4096},
    }


def resident() -> tuple[int, int]:
    """Bytes resident now, and the most since the last `forget_peak`."""
    status = Path("/proc/self/status").read_text("utf-8")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def train(tree: dict[str, Any], folder: Path) -> None:
    """Train in this process and print the peaks as JSON, in order of the phases."""
    from sae_engine.files import RunFolder
    from sae_engine.schema.records import MetricsRecord, PhaseRecord
    from sae_engine.training.loop import train

    config = resolve_config(None, tree)
    # What is imported and compiled on the way is the program's own, not the run's.
    for _ in train(resolve_config("quick-test", {}), RunFolder(folder.with_name("first"))):
        pass
    gc.collect()
    before, _ = resident()
    forget_peak()
    peaks: list[tuple[str, int]] = []
    phase = "start"
    for record in train(config, RunFolder(folder)):
        if isinstance(record, PhaseRecord):
            peaks.append((phase, resident()[1] - before))
            forget_peak()
            phase = record.phase
        elif isinstance(record, MetricsRecord) and "fvu" in record.values:
            print(f"step {record.step}: FVU {record.values['fvu']:.3f}", file=sys.stderr)
    peaks.append((phase, resident()[1] - before))
    print(json.dumps(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description="Rehearse Gemma-2-2b on the CPU.")
    parser.add_argument("--hidden", type=int, default=2304)
    parser.add_argument("--vocab", type=int, default=256_000)
    parser.add_argument("--layers", type=int, default=4, help="of Gemma-2-2b's 26")
    parser.add_argument("--layer", type=int, default=2, help="where the SAE reads")
    parser.add_argument("--ctx-len", type=int, default=1024)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1024, help="tokens in a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gemma-rehearsal-") as scratch:
        folder = Path(options.train or Path(scratch) / "model")
        tree = run_config(folder, options)
        if options.train:
            train(tree, Path(scratch) / "run")
            return
        writer = subprocess.run(
            [sys.executable, "-c", _WRITE.format(folder=str(folder), options=vars(options))]
        )
        writer.check_returncode()
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--train", str(folder)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        expected = estimate(resolve_config(None, tree), gpu=False)
        report(json.loads(done.stdout), expected.memory_bytes, expected.model_dump())


_WRITE = """
import argparse
from pathlib import Path
from benchmarks.gemma_rehearsal import write_model
write_model(Path({folder!r}), argparse.Namespace(**{options!r}))
"""


def report(peaks: list[tuple[str, int]], expected: int, parts: dict[str, Any]) -> None:
    print("\nlargest resident memory over the program's own, by phase:")
    for phase, size in peaks:
        print(f"  {size / GIB:7.2f} GiB  {phase}")
    print("\nestimated:")
    for part in parts["memory"]:
        print(f"  {part['bytes'] / GIB:7.2f} GiB  {part['name']}")
    loaded = next(i for i, (phase, _) in enumerate(peaks) if phase == "loading the language model")
    measured = max(size for _, size in peaks[loaded + 1 :])
    ratio = expected / measured
    print(f"\nestimate {expected / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB, {ratio:.2f}")
    good = abs(ratio - 1) <= TOLERANCE and measured <= MOST_BYTES
    sys.exit(0 if good else "outside the tolerance")


if __name__ == "__main__":
    main()
