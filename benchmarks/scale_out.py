"""What a run gains from several GPUs, and a queue from many machines, on paper.

    python benchmarks/scale_out.py                                  # tables, with the assumptions
    python benchmarks/scale_out.py --lm-tokens-per-second 21000     # with a figure you measured
    python benchmarks/scale_out.py --only fleet --jobs 8 64 256

Nothing here is measured. Every assumption is an argument, to be replaced by a measurement when
there is one. The first tables are arithmetic; the fleet is a simulation of events.

One run: a step trains on n tokens of width d with F latents, k of them active. On one GPU it takes
t_LM + t_SAE, with

    t_LM = n / (tokens/s of the language model)
    t_SAE = 2ndF / FLOPS + (bytes of Adam) / bandwidth + (bytes of sparse rows) / bandwidth

- readers: all ranks read text, one of them trains. Only t_SAE cannot be divided.
- sharded latents: rank r owns F / R latents; everything is divided, and activations, candidate
  scores, partial reconstructions and their gradients are exchanged.
- members: the SAEs of a sweep, spread over ranks that share what they read.

Efficiency is throughput over R times the throughput of one GPU.
"""

from __future__ import annotations

import heapq
import math
import random
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from _common import parser

BF16, FLOAT32, INDEX = 2, 4, 4
ADAM_BYTES = 7 * FLOAT32
"""Per parameter: weight, gradient and two moments are read, three of them written."""
SPARSE_PASSES = 4
"""Reads or writes of k rows per token: the reconstruction and three gradients."""
VARIED = {"d_sae", "jobs", "copies_behind"}
WIDTHS = {"16k": 2**14, "131k": 2**17, "1M": 2**20}


@dataclass(frozen=True)
class Step:
    """One training step, and the machine it runs on."""

    batch_tokens: int = 4096
    d_in: int = 2304
    d_sae: int = 2**14
    k: int = 64
    lm_tokens_per_second: float = 190_000
    flops: float = 700e12
    memory_bytes_per_second: float = 4e12
    link_bytes_per_second: float = 300e9
    exchange_seconds: float = 20e-6
    """Latency of one collective operation."""

    @property
    def lm_seconds(self) -> float:
        return self.batch_tokens / self.lm_tokens_per_second

    @property
    def num_parameters(self) -> int:
        """Of the two matrices."""
        return 2 * self.d_in * self.d_sae

    @property
    def sae_seconds(self) -> float:
        encoder = 2 * self.batch_tokens * self.d_in * self.d_sae / self.flops
        rows = SPARSE_PASSES * self.batch_tokens * self.k * self.d_in * FLOAT32
        traffic = ADAM_BYTES * self.num_parameters + rows
        return encoder + traffic / self.memory_bytes_per_second

    @property
    def most_readers(self) -> float:
        """Ranks up to which readers and one trainer lose nothing."""
        return 1 + self.lm_seconds / self.sae_seconds


def dense_gradient_bytes(step: Step, ranks: int) -> float:
    """Received per rank and step by an all-reduce of both matrices' gradients."""
    return 2 * (ranks - 1) / ranks * FLOAT32 * step.num_parameters


def reader_bytes(step: Step, ranks: int) -> float:
    """Received by the trainer per step: what the other ranks read."""
    return (ranks - 1) / ranks * step.batch_tokens * step.d_in * BF16


def shard_bytes(step: Step, ranks: int) -> float:
    """Received per rank and step: activations in bfloat16, partial reconstructions and their
    gradient in float32, and the k best candidates of every other rank.
    """
    vectors = (ranks - 1) / ranks * step.batch_tokens * step.d_in * (BF16 + 2 * FLOAT32)
    candidates = (ranks - 1) * step.batch_tokens * step.k * FLOAT32
    return vectors + candidates


def readers_efficiency(step: Step, ranks: int) -> float:
    """Also bounded by the link, over which activations travel while others are read."""
    work = step.lm_seconds + step.sae_seconds
    link = reader_bytes(step, ranks) / step.link_bytes_per_second
    return work / ranks / max(work / ranks, step.sae_seconds, link)


def shards_efficiency(step: Step, ranks: int) -> float:
    """Four exchanges, none of them hidden behind the computation."""
    if ranks == 1:
        return 1.0
    ideal = (step.lm_seconds + step.sae_seconds) / ranks
    link = shard_bytes(step, ranks) / step.link_bytes_per_second + 4 * step.exchange_seconds
    return ideal / (ideal + link)


def members_efficiency(step: Step, ranks: int, members: int) -> float:
    """Members cannot be divided, reading can."""
    work = step.lm_seconds + members * step.sae_seconds
    return work / ranks / max(work / ranks, math.ceil(members / ranks) * step.sae_seconds)


@dataclass(frozen=True)
class Fleet:
    """Jobs on nodes of one GPU that share a database, which has one writer, and a file system."""

    jobs: int = 8
    hours: float = 4
    metric_seconds: float = 2
    """Between a job's writes of metrics."""
    write_seconds: float = 0.003
    checkpoint_seconds: float = 600
    checkpoint_bytes: float = 3 * 2 * 2304 * 2**17 * FLOAT32
    shared_bytes_per_second: float = 2e9
    """Of the file system, over all jobs."""
    local_bytes_per_second: float = 3e9
    copies_behind: bool = True
    """Checkpoints are written locally, and copied while training goes on."""
    failure_hours: float = 1000
    """Mean time between failures of one node."""
    restart_seconds: float = 60
    seed: int = 0


class _Server:
    """Serves one request after another."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """The time at which a request made now is done."""
        self.free_at = max(now, self.free_at) + seconds
        return self.free_at


class _Job:
    """A job's clock, and how much of it was training that was not lost."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self.now = 0.0
        self.trained = 0.0
        """Seconds of training, of which the last since `kept` would be lost."""
        self.kept = 0.0
        self.next_write = rng.uniform(0, fleet.metric_seconds)
        self.next_checkpoint = rng.uniform(0, fleet.checkpoint_seconds)
        """Both on the clock of training."""
        self.copied_at = 0.0
        """When the newest checkpoint is safe from a lost node."""
        self.copied = 0.0
        """Training that it holds."""


def fleet_efficiency(fleet: Fleet) -> float:
    """Training that was kept over the time of all jobs, by simulating every write."""
    rng = random.Random(fleet.seed)
    writer, files = _Server(), _Server()
    end = fleet.hours * 3600
    jobs = [_Job(fleet, rng) for _ in range(fleet.jobs)]
    failures = [rng.expovariate(1 / (fleet.failure_hours * 3600)) for _ in jobs]
    queue = [(0.0, number) for number in range(fleet.jobs)]
    while queue:
        _, number = heapq.heappop(queue)
        job = jobs[number]
        train_until = min(job.next_write, job.next_checkpoint)
        done_at = job.now + train_until - job.trained
        if failures[number] < min(done_at, end):
            _lose(job, failures[number], fleet)
            failures[number] = job.now + rng.expovariate(1 / (fleet.failure_hours * 3600))
        elif done_at >= end:
            job.trained += max(0, end - job.now)
            continue
        else:
            job.now, job.trained = done_at, train_until
            _write(job, fleet, writer, files)
        heapq.heappush(queue, (_next_event(job), number))
    return sum(job.trained for job in jobs) / (fleet.jobs * end)


def _next_event(job: _Job) -> float:
    return job.now + min(job.next_write, job.next_checkpoint) - job.trained


def _lose(job: _Job, at: float, fleet: Fleet) -> None:
    """The node fails: training since the newest safe checkpoint is lost."""
    if at >= job.copied_at:
        job.kept = job.copied
    job.trained, job.now = job.kept, at + fleet.restart_seconds
    job.next_write = job.trained + fleet.metric_seconds
    job.next_checkpoint = job.trained + fleet.checkpoint_seconds


def _write(job: _Job, fleet: Fleet, writer: _Server, files: _Server) -> None:
    """Metrics or a checkpoint, whichever is due; the job waits until it is written."""
    if job.next_write <= job.next_checkpoint:
        job.now = writer.serve(job.now, fleet.write_seconds)
        job.next_write += fleet.metric_seconds
        return
    job.next_checkpoint += fleet.checkpoint_seconds
    if job.now < job.copied_at:  # the one before is still being copied
        return
    job.kept = job.copied
    if fleet.copies_behind:
        job.now += fleet.checkpoint_bytes / fleet.local_bytes_per_second
    job.copied_at = files.serve(job.now, fleet.checkpoint_bytes / fleet.shared_bytes_per_second)
    job.copied = job.trained
    if not fleet.copies_behind:
        job.now = job.copied_at


def run_table(step: Step, ranks: list[int], members: int) -> Iterator[str]:
    yield "bytes received per rank and step, MB: " + "; ".join(
        f"{name} dense gradients {dense_gradient_bytes(s, 8) / 1e6:,.0f}, "
        f"sharded latents {shard_bytes(s, 8) / 1e6:.0f}, readers {reader_bytes(s, 8) / 1e6:.1f}"
        for name, s in _widths(step)
    )
    yield f"{'efficiency':24}" + "".join(f"{f'R = {r}':>9}" for r in ranks)
    for name, s in _widths(step):
        kinds = {
            f"readers (to {s.most_readers:.1f})": [readers_efficiency(s, r) for r in ranks],
            "sharded latents": [shards_efficiency(s, r) for r in ranks],
            f"{members} members": [members_efficiency(s, r, members) for r in ranks],
        }
        for kind, values in kinds.items():
            yield f"{name:>5} {kind:18}" + "".join(f"{value:9.2f}" for value in values)


def _widths(step: Step) -> Iterator[tuple[str, Step]]:
    return ((name, replace(step, d_sae=d_sae)) for name, d_sae in WIDTHS.items())


def fleet_table(fleet: Fleet, jobs: list[int]) -> Iterator[str]:
    kinds = {
        "batches of .25 s, checkpoints block": replace(
            fleet, metric_seconds=0.25, copies_behind=False
        ),
        f"batches of {fleet.metric_seconds:g} s, copied behind": fleet,
    }
    yield f"{'fleet, jobs':38}" + "".join(f"{n:>7}" for n in jobs)
    for kind, each in kinds.items():
        values = [fleet_efficiency(replace(each, jobs=n)) for n in jobs]
        yield f"{kind:38}" + "".join(f"{value:7.2f}" for value in values)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=["run", "fleet"])
    arguments.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    arguments.add_argument("--members", type=int, default=8)
    arguments.add_argument("--jobs", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    for kind in (Step, Fleet):
        for name, default in _assumptions(kind).items():
            flag = f"--{name.replace('_', '-')}"
            arguments.add_argument(flag, type=type(default), default=default)
    chosen = arguments.parse_args()
    if chosen.only != "fleet":
        print(*run_table(Step(**_chosen(Step, chosen)), chosen.ranks, chosen.members), sep="\n")
    if chosen.only != "run":
        print(*fleet_table(Fleet(**_chosen(Fleet, chosen)), chosen.jobs), sep="\n")


def _chosen(kind: type[Step] | type[Fleet], arguments: Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in _assumptions(kind)}


def _assumptions(kind: type[Step] | type[Fleet]) -> dict[str, Any]:
    """Defaults by name; what the tables vary is not among them."""
    return {f.name: f.default for f in fields(kind) if f.name not in VARIED}


if __name__ == "__main__":
    main()
