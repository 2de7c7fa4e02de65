"""The SAEs of a sweep spread over devices: a process on each takes the steps of some of the runs.

Opened by `loop`. The trainer keeps everything else, so it alone evaluates, writes files and decides
when a run ends: it hands out every batch, in memory that all processes read, and fetches a run's
weights when it needs them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.activations.outliers import OutlierFilter
from sae_engine.activations.processes import Helper, SharedTensor, Shipped
from sae_engine.sae.trainer import Budget
from sae_engine.schema.config import RunConfig
from sae_engine.training.run import TrainingRun
from sae_engine.training.steps import Steps, new_trainer

BATCHES_AHEAD = 4
"""Batches that a process is given before the trainer waits for its steps on the first of them."""


class Spread:
    """The processes that take steps, one on each of `devices`, and the batches that they share."""

    def __init__(self, devices: Sequence[str], runs: Sequence[TrainingRun]) -> None:
        """The runs are dealt out in turn, the first to this process. Those that go to another one
        get new `TrainingRun.steps`.
        """
        devices = devices[: len(runs) - 1]
        self._others = [_Process(device) for device in devices]
        for number, run in enumerate(runs):
            place = number % (len(devices) + 1)
            if place:
                other = self._others[place - 1]
                other.runs[number] = run
                run.steps = _StepsElsewhere(run.steps, number, other)
        self._ring: list[list[SharedTensor]] = []
        self._num_given = 0

    def give(self, batch: Sequence[Float[Tensor, "n d_in"]], active: Collection[int]) -> None:
        """Let the other processes take the steps of their `active` runs on a batch of all hooks."""
        numbers = {other: [n for n in other.runs if n in active] for other in self._others}
        busy = [other for other in self._others if numbers[other]]
        if not busy:
            return
        if not self._ring:
            self._begin(batch)
        slot = self._num_given % BATCHES_AHEAD
        self._num_given += 1
        for other in self._others:
            other.wait(BATCHES_AHEAD - 1)
        for shared, hook in zip(self._ring[slot], batch, strict=True):
            shared.tensor.copy_(hook)
        for other in busy:
            other.give(slot, numbers[other])

    def _begin(self, batch: Sequence[Tensor]) -> None:
        self._ring = [[SharedTensor(hook) for hook in batch] for _ in range(BATCHES_AHEAD)]
        for other in self._others:
            other.begin([[shared.ship() for shared in slot] for slot in self._ring])
        for slot in self._ring:
            for shared in slot:
                shared.close()

    def close(self) -> None:
        for other in self._others:
            other.close()


class _Process:
    """A process that takes steps, as the trainer sees it."""

    def __init__(self, device: str) -> None:
        self.runs: dict[int, TrainingRun] = {}
        self._helper = Helper("SAE trainer", device, _serve, device)
        self._num_unanswered = 0
        self._metrics: dict[int, dict[str, float]] = {}

    def begin(self, ring: list[list[Shipped]]) -> None:
        takeovers = {number: _Takeover.of(run) for number, run in self.runs.items()}
        self._helper.send((ring, takeovers))

    def give(self, slot: int, numbers: list[int]) -> None:
        self._helper.send(_Batch(slot, numbers))
        self._num_unanswered += 1

    def wait(self, num_left: int = 0) -> None:
        """Wait until the steps on at most `num_left` batches are missing."""
        while self._num_unanswered > num_left:
            self._metrics |= self._helper.receive()
            self._num_unanswered -= 1

    def metrics(self, number: int) -> dict[str, float]:
        """Of the last logged step of a run."""
        return self._metrics.pop(number)

    def fetch(self, number: int) -> tuple[int, dict[str, Tensor]]:
        """The outliers of a run so far, and its trainer's tensors."""
        self.wait()
        self._helper.send(_Fetch(number))
        num_outliers, names = self._helper.receive()
        return num_outliers, dict(zip(names, self._helper.receive_tensors(), strict=True))

    def close(self) -> None:
        self._helper.close()


class _StepsElsewhere(Steps):
    """Steps that another process takes; the trainer and the filter here only keep count until
    `fetch`.
    """

    def __init__(self, steps: Steps, number: int, process: _Process) -> None:
        super().__init__(steps.trainer, steps.ordinary)
        self._number = number
        self._process = process
        self._fetched_step = -1

    def take(self, batch: Float[Tensor, "n d_in"], *, is_read: bool) -> None:
        """Count a step on the batch, which `Spread.give` has given to the process."""
        self.trainer.steps_done += 1
        if is_read:
            self._process.wait()

    def metrics(self) -> dict[str, float]:
        metrics = self._process.metrics(self._number)
        self._count_outliers(int(metrics["outlier_tokens"]))
        return metrics

    def fetch(self) -> None:
        if self._fetched_step != self.trainer.steps_done:
            num_outliers, tensors = self._process.fetch(self._number)
            self.trainer.load_(tensors)
            self._count_outliers(num_outliers)
            self._fetched_step = self.trainer.steps_done

    def _count_outliers(self, num_tokens: int) -> None:
        self.ordinary.restore_(self.ordinary.median_norm, num_tokens)


class _Takeover(NamedTuple):
    """What a process needs to continue a run's steps."""

    config: RunConfig
    hook: int
    d_in: int
    budget: Budget
    scale: float
    variance: float
    steps_done: int
    median_norm: float
    num_outliers: int
    tensors: dict[str, Shipped]

    @classmethod
    def of(cls, run: TrainingRun) -> _Takeover:
        trainer, ordinary = run.steps.trainer, run.steps.ordinary
        return cls(
            run.config,
            run.hook,
            trainer.sae.d_in,
            trainer.budget,
            trainer.scale,
            trainer.variance,
            trainer.steps_done,
            ordinary.median_norm,
            ordinary.num_tokens,
            {name: Shipped.of(tensor) for name, tensor in trainer.tensors().items()},
        )

    def steps(self, device: torch.device) -> Steps:
        trainer = new_trainer(self.config, self.d_in, self.budget, device)
        trainer.load_({name: shipped.tensor() for name, shipped in self.tensors.items()})
        trainer.scale, trainer.variance = self.scale, self.variance
        trainer.steps_done = self.steps_done
        ordinary = OutlierFilter(self.config.data.max_norm_multiple)
        ordinary.restore_(self.median_norm, self.num_outliers)
        return Steps(trainer, ordinary)


class _Batch(NamedTuple):
    """Asks for a step on the batch in a slot of the ring; answered by the logged metrics."""

    slot: int
    numbers: list[int]
    """Of the runs that take it."""


class _Fetch(NamedTuple):
    """Asks for the state of a run."""

    number: int


def _serve(connection: Connection, device_name: str) -> None:
    """The process."""
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    shipped: list[list[Shipped]]
    takeovers: dict[int, _Takeover]
    shipped, takeovers = connection.recv()
    ring = [[hook.tensor() for hook in slot] for slot in shipped]
    steps = {number: takeover.steps(device) for number, takeover in takeovers.items()}
    while True:
        match connection.recv():
            case _Batch(slot, numbers):
                metrics: dict[int, dict[str, float]] = {}
                for number in numbers:
                    mine = steps[number]
                    mine.take(ring[slot][takeovers[number].hook].to(device), is_read=True)
                    if mine.is_logged(mine.trainer.steps_done):
                        metrics[number] = mine.metrics()
                connection.send(metrics)
            case _Fetch(number):
                tensors = steps[number].trainer.tensors()
                connection.send((steps[number].ordinary.num_tokens, list(tensors)))
                connection.send([Shipped.of(tensor) for tensor in tensors.values()])
