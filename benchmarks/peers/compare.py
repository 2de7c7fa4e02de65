"""Our trainer compared with SAELens, sparsify, dictionary_learning and a textbook implementation.

    python benchmarks/peers/compare.py --venvs DIR --data DIR speed     # tokens/s at four sizes
    python benchmarks/peers/compare.py --venvs DIR --data DIR quality   # results of 2M tokens at S1

The folder `--venvs` gets one virtual environment per peer, created with pip if missing. Each run is
its own process; trainers alternate, so that the machine's drift affects all alike: read the ratios,
not the absolute figures. `floor` is one float32 encoder matmul plus Adam's memory traffic, measured
in the same turns. `--only` selects trainers, `--sizes` sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from planted import plant

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import machine, parser, peer_python, seconds  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "sae-lens": ["sae-lens==6.54.12"],
    "sparsify": ["eai-sparsify==1.3.3"],
    "sparsify-adam": ["eai-sparsify==1.3.3"],
    "dictionary-learning": ["dictionary-learning==0.1.0"],
}
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}
TRAINERS = ["ours", "sparsify", "sparsify-adam", "dense", "sae-lens", "dictionary-learning"]


class Size(NamedTuple):
    d_in: int
    d_sae: int
    k: int
    batch: int
    steps: int
    num_directions: int
    num_tokens: int


SIZES = {
    "S1": Size(256, 4096, 32, 1024, 60, 2048, 2_097_152),
    "S2": Size(768, 12288, 32, 1024, 14, 4096, 32_768),
    "S3": Size(2304, 9216, 64, 512, 12, 4096, 16_384),
    "S4": Size(2304, 36864, 64, 512, 8, 4096, 16_384),
}


def python_of(trainer: str, venvs: Path) -> str:
    """The interpreter that a trainer runs in."""
    if trainer not in PACKAGES:
        return sys.executable
    # with this release of PyTorch, whatever the peer's packages would prefer
    release = f"torch=={torch.__version__.split('+')[0]}"
    packages = [release, "numpy", *PACKAGES[trainer]]
    return peer_python(venvs / trainer.removesuffix("-adam"), packages)


def run(trainer: str, size: Size, data: Path, venvs: Path, **task: Any) -> dict[str, float] | None:
    described = {
        "trainer": trainer, "data": str(data), "d_sae": size.d_sae, "k": size.k,
        "batch": size.batch, "steps": size.steps, **task,
    }  # fmt: skip
    environment = os.environ | ENVIRONMENT
    environment |= {"PYTHONPATH": str(HERE.parent.parent) if trainer == "ours" else ""}
    done = subprocess.run(
        [python_of(trainer, venvs), HERE / "trainers.py", json.dumps(described)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(f"{trainer} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
    return None


def floor(size: Size) -> float:
    """Tokens/s of one float32 encoder matmul plus Adam's memory traffic over both matrices."""
    x, W = torch.randn(size.batch, size.d_in), torch.randn(size.d_sae, size.d_in)
    out = torch.empty(size.batch, size.d_sae)
    matmul = min(seconds(lambda: torch.mm(x, W.T, out=out)) for _ in range(5))
    parameter = torch.nn.Parameter(torch.randn(2 * size.d_sae, size.d_in))
    parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam([parameter], fused=True)
    adam.step()
    return size.batch / (matmul + min(seconds(adam.step) for _ in range(3)))


def speed(options: argparse.Namespace) -> None:
    print("| size | trainer | tokens/s | of floor | ours is | peak MB over imports |")
    print("|---|---|---|---|---|---|")
    for name in options.sizes:
        size = SIZES[name]
        data = options.data / ("S3" if name == "S4" else name)
        plant(data, size.d_in, size.num_directions, size.num_tokens)
        floors: list[float] = []
        found: dict[str, list[dict[str, float]]] = {trainer: [] for trainer in options.only}
        for _ in range(options.repeats):
            floors.append(floor(size))
            for trainer in options.only:
                result = run(trainer, size, data, options.venvs)
                if result is not None:
                    found[trainer].append(result)
        floor_speed = statistics.median(floors)
        print(f"| {name} | floor | {floor_speed:,.0f} | 1.00 | | |")
        medians = {
            trainer: statistics.median(r["tokens_per_second"] for r in results)
            for trainer, results in found.items()
            if results
        }
        for trainer, median in medians.items():
            peak = max(r["peak_mb"] for r in found[trainer])
            ratio = f"{medians['ours'] / median:.2f} x" if "ours" in medians else ""
            print(
                f"| {name} | {trainer} | {median:,.0f} | {median / floor_speed:.2f} | {ratio} | "
                f"{peak:,.0f} |", flush=True,
            )  # fmt: skip


def quality(options: argparse.Namespace) -> None:
    size = SIZES["S1"]
    data = options.data / "S1"
    plant(data, size.d_in, size.num_directions, size.num_tokens)
    steps = size.num_tokens // size.batch
    print("| trainer | settings | FVU | MMCS | dead | tokens/s |\n|---|---|---|---|---|---|")
    for trainer in options.only:
        # sparsify, tuned, would be the same as sparsify-adam
        for tuned in (False,) if trainer in ("ours", "sparsify") else (False, True):
            lr = {"lr": 1e-3} if tuned else {}
            result = run(
                trainer, size._replace(steps=steps), data, options.venvs, judged=True,
                tuned=tuned, **lr,
            )  # fmt: skip
            if result is not None:
                settings = "Adam, lr 1e-3, warm-up, decay" if tuned else "its defaults"
                print(
                    f"| {trainer} | {settings} | {result['fvu']:.4f} | {result['mmcs']:.4f} | "
                    f"{result['dead']:.2%} | {result['tokens_per_second']:,.0f} |", flush=True,
                )  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=["speed", "quality"])
    arguments.add_argument("--venvs", type=Path, required=True)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--only", nargs="+", default=TRAINERS, choices=TRAINERS)
    arguments.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}\n")
    {"speed": speed, "quality": quality}[options.what](options)


if __name__ == "__main__":
    main()
