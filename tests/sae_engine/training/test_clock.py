"""Throughput and shares of time, on a fake clock and a device that runs its work later."""

from __future__ import annotations

import time

import pytest
import torch

from sae_engine.training.clock import WINDOW_SECONDS, Clock, DeviceTimer, HostTimer, open_timer

BATCH = 100


class Machine(DeviceTimer):
    """A host whose clock only moves when told to, and a device with a queue of work."""

    def __init__(self) -> None:
        self.now = 0.0
        self._idle_at = 0.0

    def host_work(self, seconds: float) -> None:
        self.now += seconds

    def queue(self, seconds: float) -> None:
        """Queue device work; the call itself returns at once."""
        self._idle_at = self.mark() + seconds

    def mark(self) -> float:
        return max(self._idle_at, self.now)

    def seconds_between(self, start: float, end: float) -> float:
        assert end <= self.now, "read before the device got there"
        return end - start

    def synchronize(self) -> None:
        self.now = self.mark()


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> Clock:
    return Clock(BATCH, machine, lambda: machine.now)


def train(clock: Clock, machine: Machine, steps: int, *, sae_seconds: float = 0.3) -> None:
    """Every step takes .1 s of shuffling on the host, and .6 s of language model and `sae_seconds`
    of SAE on the device.
    """
    for _ in range(steps):
        with clock.lm_call():
            machine.queue(0.6)
        machine.synchronize()  # shuffling reads activations
        machine.host_work(0.1)
        clock.steps += 1
        with clock.sae_step():
            machine.queue(sae_seconds)


def read(clock: Clock) -> dict[str, float]:
    with clock.pause():
        return clock.read()


EXPECTED = {"tokens_per_second": 100, "lm_share": 0.6, "sae_share": 0.3, "buffer_share": 0.1}


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_queued_work_counts_where_it_was_queued_and_not_where_it_is_waited_for(
    clock: Clock, machine: Machine, steps: int
):
    for _ in range(3):
        train(clock, machine, steps)
        assert read(clock) == pytest.approx(EXPECTED)


def test_work_in_a_pause_does_not_count(clock: Clock, machine: Machine):
    train(clock, machine, 5)
    with clock.pause():
        machine.host_work(70)
        machine.queue(500)
    train(clock, machine, 5)
    assert read(clock) == pytest.approx(EXPECTED)


def test_an_exception_ends_a_pause_and_a_timed_section(clock: Clock, machine: Machine):
    train(clock, machine, 4)

    def fail(seconds: float) -> None:
        machine.queue(seconds)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), clock.pause():
        fail(40)
    with pytest.raises(ZeroDivisionError), clock.sae_step():
        fail(0.5)
    machine.synchronize()
    machine.host_work(0.5)
    values = read(clock)
    assert values["tokens_per_second"] == pytest.approx(4 * BATCH / 5)
    assert values["sae_share"] == pytest.approx((4 * 0.3 + 0.5) / 5)


def test_a_slowdown_shows_within_the_window(clock: Clock, machine: Machine):
    for _ in range(100):
        train(clock, machine, 10)
        assert read(clock)["tokens_per_second"] == pytest.approx(100)
    for _ in range(int(WINDOW_SECONDS / 20) + 1):  # steps now take 2 s
        train(clock, machine, 10, sae_seconds=1.3)
        values = read(clock)
    assert values["tokens_per_second"] == pytest.approx(50)
    assert values["sae_share"] == pytest.approx(0.65)


def test_readings_further_apart_than_the_window_cover_the_time_between_them(
    clock: Clock, machine: Machine
):
    train(clock, machine, 100)
    read(clock)
    for _ in range(2):  # two runs on the same pass, which log the same steps
        train(clock, machine, 100, sae_seconds=1.3)
        assert read(clock)["tokens_per_second"] == pytest.approx(50)
        assert read(clock)["tokens_per_second"] == pytest.approx(50)


def test_on_a_host_work_takes_the_time_of_its_call():
    machine = Machine()
    clock = Clock(BATCH, HostTimer(lambda: machine.now), lambda: machine.now)
    for _ in range(3):
        with clock.lm_call():
            machine.host_work(0.6)
        machine.host_work(0.1)
        clock.steps += 1
        with clock.sae_step():
            machine.host_work(0.3)
    assert read(clock) == pytest.approx(EXPECTED)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_events_measure_work_that_the_host_only_queued():
    timer, x = open_timer(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    x @ x
    timer.synchronize()
    began = time.perf_counter()
    start = timer.mark()
    for _ in range(50):
        x @ x
    end = timer.mark()
    timer.synchronize()
    taken = time.perf_counter() - began
    assert 0.5 * taken < timer.seconds_between(start, end) <= taken
