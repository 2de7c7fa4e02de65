"""The model of several GPUs and machines against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scale_out import (
    Fleet,
    Step,
    dense_gradient_bytes,
    fleet_efficiency,
    members_efficiency,
    reader_bytes,
    readers_efficiency,
    shard_bytes,
    shards_efficiency,
)

STEP = Step()
FREE_LINK = replace(STEP, link_bytes_per_second=1e30, exchange_seconds=0)
QUIET = Fleet(
    jobs=1, hours=10, write_seconds=0, checkpoint_bytes=0, failure_hours=1e9, restart_seconds=0
)
"""Nothing costs anything, and nothing fails."""


def test_bytes_by_hand() -> None:
    small = Step(batch_tokens=10, d_in=3, d_sae=5, k=2)
    assert dense_gradient_bytes(small, 2) == 30 * 4
    assert dense_gradient_bytes(small, 4) == 30 * 4 * 1.5
    assert reader_bytes(small, 2) == 5 * 3 * 2
    assert shard_bytes(small, 2) == 5 * 3 * (2 + 4 + 4) + 10 * 2 * 4
    assert dense_gradient_bytes(small, 1) == reader_bytes(small, 1) == shard_bytes(small, 1) == 0


def test_seconds_by_hand() -> None:
    units = {"lm_tokens_per_second": 1, "flops": 1, "memory_bytes_per_second": 1}
    small = Step(batch_tokens=10, d_in=3, d_sae=5, k=2, **units)
    assert small.lm_seconds == 10
    assert small.sae_seconds == 2 * 10 * 3 * 5 + 7 * 4 * 30 + 4 * 10 * 2 * 3 * 4


@pytest.mark.parametrize("d_sae", [2**14, 2**17, 2**20])
def test_readers_lose_nothing_up_to_a_number_and_all_more_beyond(d_sae: int) -> None:
    step = replace(FREE_LINK, d_sae=d_sae)
    most = step.most_readers
    assert readers_efficiency(step, int(most)) == pytest.approx(1)
    for ranks in (int(most) + 1, 100):
        assert readers_efficiency(step, ranks) == pytest.approx(most / ranks)


def test_a_slow_link_bounds_the_readers() -> None:
    step = replace(STEP, link_bytes_per_second=1e6)
    seconds = reader_bytes(step, 4) / 1e6
    expected = (step.lm_seconds + step.sae_seconds) / 4 / seconds
    assert readers_efficiency(step, 4) == pytest.approx(expected)


def test_shards_lose_what_the_link_takes() -> None:
    assert shards_efficiency(STEP, 1) == 1
    assert shards_efficiency(FREE_LINK, 8) == pytest.approx(1)
    ideal = (STEP.lm_seconds + STEP.sae_seconds) / 2
    slow = replace(STEP, link_bytes_per_second=shard_bytes(STEP, 2) / ideal, exchange_seconds=0)
    assert shards_efficiency(slow, 2) == pytest.approx(0.5)


def test_members_waste_only_what_does_not_divide() -> None:
    no_reading = replace(STEP, lm_tokens_per_second=1e30)
    assert members_efficiency(no_reading, 4, 8) == pytest.approx(1)
    assert members_efficiency(no_reading, 4, 9) == pytest.approx(9 / 12)
    assert members_efficiency(no_reading, 4, 1) == pytest.approx(1 / 4)
    assert members_efficiency(FREE_LINK, 8, 1) == pytest.approx(readers_efficiency(FREE_LINK, 8))


def test_a_fleet_without_costs_is_efficient() -> None:
    assert fleet_efficiency(QUIET) == pytest.approx(1)


@pytest.mark.parametrize("copies_behind", [True, False])
def test_a_lone_job_loses_what_it_writes(copies_behind: bool) -> None:
    fleet = replace(
        QUIET, write_seconds=0.1, checkpoint_bytes=60e9, local_bytes_per_second=3e9,
        shared_bytes_per_second=2e9, copies_behind=copies_behind,
    )  # fmt: skip
    checkpoint = 20 if copies_behind else 30
    expected = 1 / (1 + 0.1 / fleet.metric_seconds + checkpoint / fleet.checkpoint_seconds)
    assert fleet_efficiency(fleet) == pytest.approx(expected, rel=2e-3)


def test_the_writer_saturates() -> None:
    fleet = replace(QUIET, jobs=50, hours=1, metric_seconds=1, write_seconds=0.1)
    assert fleet_efficiency(fleet) == pytest.approx(1 / (50 * 0.1), rel=1e-2)


def test_a_shared_disk_saturates_only_jobs_that_wait_for_it() -> None:
    fleet = replace(QUIET, jobs=100, checkpoint_bytes=60e9, shared_bytes_per_second=2e9)
    waiting = fleet_efficiency(replace(fleet, copies_behind=False))
    assert waiting == pytest.approx(600 / (100 * 30), rel=5e-2)
    assert fleet_efficiency(fleet) > 0.96


def test_a_failure_costs_half_an_interval_and_the_restart() -> None:
    fleet = replace(
        QUIET, jobs=100, hours=200, metric_seconds=600, failure_hours=20, restart_seconds=60
    )
    lost = (fleet.checkpoint_seconds / 2 + 60) / (20 * 3600)
    assert 1 - fleet_efficiency(fleet) == pytest.approx(lost, rel=0.1)
