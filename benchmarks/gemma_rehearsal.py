"""Memory of training an SAE on Gemma-2-2b on a CPU, compared with the estimate.

    python benchmarks/gemma_rehearsal.py                        # about 10 GiB of memory
    python benchmarks/gemma_rehearsal.py --hidden 256 --vocab 16000 --d-sae 2048   # a small trial

The model has Gemma-2-2b's configuration with fewer layers and random weights. Prints, for each
phase, the peak of resident memory beyond the program's own, which is its memory after a small run.
Resident memory includes the pages of the model's files while they are read, so the comparison
begins when the model is loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import parser, status_bytes, write_gemma

from sae_engine.estimate import estimate
from sae_engine.presets import resolve_config

GIB = 2**30
TOLERANCE = 0.15
MOST_BYTES = 20 * GIB


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """Save Gemma-2-2b's configuration with the options' sizes, and random weights in bfloat16."""
    import torch

    torch.set_default_dtype(torch.bfloat16)
    write_gemma(
        folder,
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
    )


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


def forget_peak() -> None:
    """Reset VmHWM, the peak of resident memory."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def train(tree: dict[str, Any], folder: Path) -> None:
    """Train in this process and print each phase's peak as JSON, in order."""
    from sae_engine.files import RunFolder
    from sae_engine.schema.records import MetricsRecord, PhaseRecord
    from sae_engine.training.loop import train

    config = resolve_config(None, tree)
    # Memory for imported modules and compiled code belongs to the program, not to the run.
    for _ in train(resolve_config("quick-test", {}), RunFolder(folder.with_name("first"))):
        pass
    gc.collect()
    before = status_bytes("VmRSS")
    forget_peak()
    peaks: list[tuple[str, int]] = []
    phase = "start"
    for record in train(config, RunFolder(folder)):
        if isinstance(record, PhaseRecord):
            peaks.append((phase, status_bytes("VmHWM") - before))
            forget_peak()
            phase = record.phase
        elif isinstance(record, MetricsRecord) and "fvu" in record.values:
            print(f"step {record.step}: FVU {record.values['fvu']:.3f}", file=sys.stderr)
    peaks.append((phase, status_bytes("VmHWM") - before))
    print(json.dumps(peaks))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--hidden", type=int, default=2304)
    arguments.add_argument("--vocab", type=int, default=256_000)
    arguments.add_argument("--layers", type=int, default=4, help="of Gemma-2-2b's 26")
    arguments.add_argument("--layer", type=int, default=2, help="whose activations the SAE reads")
    arguments.add_argument("--ctx-len", type=int, default=1024)
    arguments.add_argument("--d-sae", type=int, default=16_384)
    arguments.add_argument("--k", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=1024, help="tokens per step")
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.write:
        return write_model(options.write, options)
    with tempfile.TemporaryDirectory(prefix="gemma-rehearsal-") as scratch:
        folder = options.train or Path(scratch) / "model"
        tree = run_config(folder, options)
        if options.train:
            return train(tree, Path(scratch) / "run")
        # Processes of their own, so that neither's memory counts for the other.
        again = [sys.executable, __file__, *sys.argv[1:]]
        subprocess.run([*again, "--write", folder], check=True)
        done = subprocess.run(
            [*again, "--train", folder], stdout=subprocess.PIPE, check=True, text=True
        )
        expected = estimate(resolve_config(None, tree), gpu=False)
        report(json.loads(done.stdout), expected.memory_bytes, expected.model_dump())


def report(peaks: list[tuple[str, int]], expected: int, parts: dict[str, Any]) -> None:
    print("\npeak of resident memory beyond the program's own, by phase:")
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
