"""What a second process that reads text gains on a CPU, with one thread each.

    python benchmarks/readers.py                     # 1 and 2 processes, alternating
    python benchmarks/readers.py --d-sae 16384       # a wider SAE, whose own step weighs more
    python benchmarks/readers.py --members 2         # two SAEs, trained in two processes too

Trains SAEs on the embedded model with `model.readers` of 1 and 2, and one thread per process, so
that two processes use two cores and one process uses one. Prints tokens per second and their ratio,
next to what `scale_out.py` says for the same shares of model and SAEs; its ideal is 2.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _common import NEVER, machine, parser

from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train_together
from sae_engine.training.member import Member

WARM_UP_STEPS = 150
"""At which the reader has loaded its model and both read ahead."""
STEPS = 450
BATCH = 512


def tokens_per_second(num_readers: int, d_sae: int, num_members: int) -> tuple[float, float]:
    """Of training, and the share of it that is the language model's."""
    quiet = dict.fromkeys(("eval_every", "ce_every", "save_every", "snapshot_every"), NEVER)
    settings: dict[str, Any] = {
        "model": {"readers": num_readers, "layer": 5},
        "data": {"heldout_tokens": 1000, "shuffle_tokens": 32768},
        "sae": {"d_sae": d_sae, "k": 16},
        "train": {"total_tokens": STEPS * BATCH, "batch_size_tokens": BATCH, "log_every": 10},
        "index": {"tokens": 1000, "snapshot_tokens": 1000},
    }
    settings["train"] |= quiet
    began, ended, shares = 0.0, 0.0, []
    with TemporaryDirectory() as folder:
        members = [
            Member(resolve_config("tiny", settings), RunFolder(Path(folder) / str(number)))
            for number in range(num_members)
        ]
        for number, record in train_together(members):
            if number:
                continue
            if isinstance(record, MetricsRecord) and "loss" in record.values:
                now = time.perf_counter()
                began = began if record.step > WARM_UP_STEPS else now
                ended = now if record.step <= STEPS else ended
                shares.append(record.values.get("lm_share", 0.0))
    return (STEPS - WARM_UP_STEPS) * BATCH / (ended - began), median(shares)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--d-sae", type=int, default=4096)
    arguments.add_argument("--members", type=int, default=1)
    arguments.add_argument("--repeats", type=int, default=3)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    print(machine())
    one: list[float] = []
    two: list[float] = []
    share = 0.0
    for _ in range(chosen.repeats):
        speed, share = tokens_per_second(1, chosen.d_sae, chosen.members)
        one.append(speed)
        two.append(tokens_per_second(2, chosen.d_sae, chosen.members)[0])
        print(f"1: {one[-1]:,.0f} tokens/s, 2: {two[-1]:,.0f}, ratio {two[-1] / one[-1]:.2f}")
    of_each = (1 - share) / chosen.members
    expected = 1 / max(0.5, math.ceil(chosen.members / 2) * of_each)
    print(f"median ratio {median(b / a for a, b in zip(one, two, strict=True)):.2f}")
    print(f"language model's share {share:.0%}, so on paper {expected:.2f}")


if __name__ == "__main__":
    main()
