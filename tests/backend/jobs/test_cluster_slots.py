"""The slots of a cluster's nodes, and the runs that fit into them."""

from __future__ import annotations

import pytest

from backend.jobs.ray_api import Node
from backend.jobs.ray_executor import slots_of
from backend.jobs.slots import ALL_GPUS, FailedStarts, Places
from backend.settings import Settings
from tests.backend.jobs.test_slots import place, row


def node(name: str, kind: str = "", **resources: float) -> Node:
    raylet = {"nodeId": "id", "nodeName": name, "state": "ALIVE", "resourcesTotal": resources}
    gpus = [{"index": index, "name": kind} for index in range(int(resources.get("GPU", 0)))]
    return Node.model_validate({"raylet": raylet, "gpus": gpus})


@pytest.mark.parametrize(
    ("resources", "devices", "ids"),
    [
        ({"GPU": 2.0, "CPU": 8.0}, [], ["n/cuda:0", "n/cuda:1", "n/cpu"]),
        ({"GPU": 1.0}, [], ["n/cuda:0"]),
        ({"memory": 1.0}, [], []),
        ({"GPU": 1.0, "CPU": 8.0}, ["cpu", "cpu"], ["n/cpu", "n/cpu#2"]),
        ({"GPU": 1.0, "CPU": 8.0}, ["cuda:0", "cuda:1"], ["n/cuda:0"]),
    ],
)
def test_a_node_has_a_slot_for_each_gpu_and_one_for_its_cpus(
    resources: dict[str, float], devices: list[str], ids: list[str]
) -> None:
    slots = slots_of(node("n", **resources), Settings(devices=devices))
    assert [slot.id for slot in slots] == ids
    assert {slot.node for slot in slots} <= {"n"}


def test_the_runs_of_a_node_without_a_gpu_of_its_own_share_its_threads() -> None:
    slots = slots_of(node("n", CPU=8), Settings(devices=["cpu", "cpu", "cpu"]))
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == ["2", "2", "2"]


def test_a_model_spread_over_gpus_stays_on_one_machine() -> None:
    slots = [s for name in "ab" for s in slots_of(node(name, GPU=2, CPU=4), Settings())]
    spread = row("spread", device_map="auto")
    whole = Places(slots, [row("other", "a/cuda:1")]).place_for(spread)
    assert whole is not None
    assert (whole.id, whole.device, whole.node) == ("b/cuda", ALL_GPUS, "b")
    busy = [row("one", "a/cuda:1"), row("two", "b/cuda:0")]
    assert Places(slots, busy).place_for(spread) is None
    free = Places(slots, [row("spread", "b/cuda")]).free()
    assert [slot.id for slot in free] == ["a/cuda:0", "a/cuda:1", "a/cpu", "b/cpu"]


def test_a_run_goes_back_to_the_kind_of_gpu_that_it_trained_on_if_one_is_free() -> None:
    """Its bits stay the same there; but a machine where starts fail comes last."""
    nodes = {"a": "A100", "h": "H100", "i": "H100"}
    slots = [
        slot
        for name, kind in nodes.items()
        for slot in slots_of(node(name, GPU=2, CPU=4, kind=kind), Settings())
    ]
    again, failed = row("again"), FailedStarts(1, "no disk")
    assert place(Places(slots, []).place_for(again)) == "a/cuda:0"
    again.device_kind = "H100"
    assert place(Places(slots, []).place_for(again)) == "h/cuda:0"
    assert place(Places(slots, [], failures={"h": failed}).place_for(again)) == "i/cuda:0"
    assert (
        place(Places(slots, [], failures={"h": failed, "i": failed}).place_for(again)) == "a/cuda:0"
    )
    busy = [row("other", f"{name}/cuda:{gpu}") for name in "hi" for gpu in (0, 1)]
    assert place(Places(slots, busy).place_for(again)) == "a/cuda:0"
    spread = row("spread", device_map="auto")
    spread.device_kind = "H100"
    whole = Places(slots, [busy[0]]).place_for(spread)
    assert whole is not None
    assert (whole.id, whole.kind) == ("i/cuda", "H100")


def test_a_run_in_a_terminal_takes_no_slot_of_a_cluster() -> None:
    slots = slots_of(node("a", CPU=4), Settings())
    assert [slot.id for slot in Places(slots, [row("terminal")]).free()] == ["a/cpu"]
