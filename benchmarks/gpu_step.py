"""Cost of an SAE's training step on a GPU, compared with a lower bound.

    python benchmarks/gpu_step.py [--d-sae 16384 65536] [--k 64 32] [--batch 4096] [--dead 0.0]

Compares autograd and the Triton kernels with a float32 and a bfloat16 search, on the same normally
distributed activations of Gemma-2-2b's width, 2304. The floor is one encoder matmul in bfloat16 at
the measured rate, plus Adam's memory traffic (weights and both moments of both matrices, read and
written) at the measured bandwidth; the matmul's times in TF32 and float32 are printed too. Needs a
CUDA device; without one, it exits with code 2.

Not yet run on a GPU, so there are no results.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from _common import parser
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.autograd_step import AutogradStepper
from sae_engine.sae.stepper import DeadLatents, Stepper, StepSettings

D_IN = 2304
TURNS, STEPS = 5, 10
KERNELS_SHOWN = 14


class Size(NamedTuple):
    d_sae: int
    k: int
    batch: int
    dead_share: float


def seconds(work: Callable[[], object], times: int = STEPS) -> float:
    """Duration of one call, averaged over `times`."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def bandwidth() -> float:
    """Bytes read and written per second while a large tensor is copied."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def matmul_seconds(size: Size) -> dict[str, float]:
    """Seconds of the encoder's forward pass, by precision."""
    x = torch.randn(size.batch, D_IN, device="cuda")
    W = torch.randn(size.d_sae, D_IN, device="cuda")
    found: dict[str, float] = {}
    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        seconds(lambda: x @ W.T, 1)  # the first call selects an algorithm
        found[name] = seconds(lambda: x @ W.T)
    torch.set_float32_matmul_precision("highest")
    x, W = x.bfloat16(), W.bfloat16()
    seconds(lambda: x @ W.T, 1)
    found["bfloat16"] = seconds(lambda: x @ W.T)
    return found


def new_stepper(way: str, size: Size) -> Stepper:
    sae = TopKSAE(D_IN, size.d_sae, size.k)
    sae.initialize_(0, torch.zeros(D_IN))
    sae.to("cuda")
    if way == "autograd":
        return AutogradStepper(sae)
    from sae_engine.sae.triton_step import TritonStepper

    return TritonStepper(sae, "bfloat16" if way == "triton bfloat16" else "float32")


WAYS = ["autograd", "triton float32", "triton bfloat16"]


class Steps:
    """One implementation's steps on one batch, without logging, like most steps of a run."""

    def __init__(self, way: str, size: Size, x: Tensor) -> None:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._stepper = new_stepper(way, size)
        self._x = x
        self._dead = DeadLatents.of(
            torch.randperm(size.d_sae, device="cuda")[: int(size.dead_share * size.d_sae)],
            size.d_sae,
        )
        self._objective = StepSettings(float(D_IN), 1 / 32, 0.0, 1.0, False, wants_norm=False)
        for _ in range(3):  # the first compiles
            self()
        torch.cuda.synchronize()
        self.peak_bytes = torch.cuda.max_memory_allocated() - before

    def __call__(self) -> None:
        self._stepper.step(self._x, self._objective, self._dead, 1e-4)

    def kernels(self) -> list[tuple[str, float]]:
        """Names and seconds per step of the GPU kernels, longest first."""
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(STEPS):
                self()
            torch.cuda.synchronize()
        found = [(e.key, e.self_device_time_total / STEPS / 1e6) for e in profiler.key_averages()]
        return sorted(found, key=lambda kernel: -kernel[1])


def report(size: Size) -> None:
    x = torch.randn(size.batch, D_IN, device="cuda")
    matmuls = matmul_seconds(size)
    traffic = 2 * 3 * 2 * size.d_sae * D_IN * 4
    rate = bandwidth()
    floor = matmuls["bfloat16"] + traffic / rate
    print(
        f"\n## d_sae {size.d_sae}, k {size.k}, batch {size.batch}, {size.dead_share:.0%} dead\n\n"
        f"Encoder matmul {', '.join(f'{n} {s * 1e3:.2f} ms' for n, s in matmuls.items())}; "
        f"{rate / 1e12:.2f} TB/s copied, Adam's traffic {traffic / rate * 1e3:.2f} ms; "
        f"floor {floor * 1e3:.2f} ms = {size.batch / floor:,.0f} tokens/s.\n\n"
        "| implementation | tokens/s | ms | floor / time | peak GB |\n|---|---|---|---|---|"
    )
    for way in WAYS:  # only one in memory at a time
        gc.collect()
        torch.cuda.empty_cache()
        steps = Steps(way, size, x)
        step = statistics.median(seconds(steps) for _ in range(TURNS))
        print(
            f"| {way} | {size.batch / step:,.0f} | {step * 1e3:.2f} | {floor / step:.0%} | "
            f"{steps.peak_bytes / 1e9:.2f} |",
            flush=True,
        )
        kernels = steps.kernels()
        whole = sum(s for _, s in kernels)
        shares = [f"{name[:60]} {s / whole:.1%}" for name, s in kernels[:KERNELS_SHOWN]]
        print(f"<!-- {way}, {whole * 1e3:.2f} ms of kernels: {'; '.join(shares)} -->", flush=True)
        del steps


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--d-sae", type=int, nargs="+", default=[16384, 65536])
    arguments.add_argument("--k", type=int, nargs="+", default=[64, 32])
    arguments.add_argument("--batch", type=int, default=4096)
    arguments.add_argument("--dead", type=float, default=0.0)
    options = arguments.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device, and PyTorch finds none.", file=sys.stderr)
        sys.exit(2)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for d_sae in options.d_sae:
        for k in options.k:
            report(Size(d_sae, k, options.batch, options.dead))


if __name__ == "__main__":
    main()
