"""A stop request is noticed within 5 seconds whatever a run is waiting for, and ends it as stopped.

The text sources and the hub here block for longer than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, EndRecord, MetricsRecord, PhaseRecord, StopRequest
from sae_engine.text import packing
from sae_engine.text.documents import Document, Split
from sae_engine.text.sources import documents
from sae_engine.training.loop import train, train_together
from sae_engine.training.member import Member
from tests.sae_engine.hub_server import ask, folder_files, serve
from tests.sae_engine.training.test_loop import collected, config_of

STOP_SECONDS = 5.0
BLOCKED_SECONDS = 20.0
COUNTING, READING = "counting the training text", "reading held-out text"


@pytest.fixture
def config(model_folders, tmp_path: Path) -> RunConfig:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"document {n} holds a few words of text" for n in range(400)))
    return config_of(
        model_folders["gemma2"],
        data={"dataset": str(text), "heldout_tokens": 1000},
        train={"total_tokens": None, "num_epochs": 1, "snapshot_every": None, "eval_every": 4},
        index={"tokens": 1000, "snapshot_tokens": 1000},
    )


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Split], Event]]:
    """Makes one split's text source block before its second document until the event is set."""
    unblock = Event()

    def block(blocked: Split) -> Event:
        def read(config, split: Split, *rest: Any) -> Iterator[Document]:
            for number, document in enumerate(documents(config, split, *rest)):
                if number == 1 and split == blocked:
                    unblock.wait(BLOCKED_SECONDS)
                yield document

        monkeypatch.setattr(packing, "documents", read)
        return unblock

    yield block
    unblock.set()


class Stopper:
    """Asks for a stop as soon as a phase has begun, and measures the time since then."""

    def __init__(self, phase: str, request: StopRequest) -> None:
        self._phase, self._request = phase, request
        self._requested_at: float | None = None
        self.records: list[AnyRecord] = []

    def should_stop(self) -> StopRequest:
        return StopRequest.NONE if self._requested_at is None else self._request

    def see(self, record: AnyRecord) -> None:
        self.records.append(record)
        if record == PhaseRecord(phase=self._phase) and self._requested_at is None:
            self._requested_at = time.monotonic()

    @property
    def seconds(self) -> float:
        assert self._requested_at is not None
        return time.monotonic() - self._requested_at


def stopped(step: int) -> EndRecord:
    return EndRecord(reason="stopped", step=step, tokens=step * 64)


@pytest.mark.parametrize("request_", [StopRequest.STOP, StopRequest.FORCE])
def test_a_stop_is_noticed_while_the_training_text_is_counted(
    config: RunConfig, tmp_path: Path, block, request_: StopRequest
):
    block("train")
    stopper = Stopper(COUNTING, request_)
    folder = RunFolder(tmp_path / "run")
    for record in train(config, folder, should_stop=stopper.should_stop):
        stopper.see(record)
    assert stopper.seconds < STOP_SECONDS
    assert stopper.records[-1] == stopped(0)


@pytest.mark.parametrize("request_", [StopRequest.STOP, StopRequest.FORCE])
def test_a_stop_is_noticed_while_held_out_text_is_read(
    config: RunConfig, tmp_path: Path, block, request_: StopRequest
):
    block("heldout")
    stopper = Stopper(READING, request_)
    folder = RunFolder(tmp_path / "run")
    for record in train(config, folder, should_stop=stopper.should_stop):
        stopper.see(record)
    assert stopper.seconds < STOP_SECONDS
    assert stopper.records[-1] == stopped(0)
    assert not folder.checkpoint.exists()


def test_counting_for_several_runs_continues_until_all_are_asked_to_stop(
    config: RunConfig, tmp_path: Path, block
):
    unblock = block("train")
    one, both = Stopper(COUNTING, StopRequest.STOP), Stopper(COUNTING, StopRequest.STOP)
    members = [
        Member(config, RunFolder(tmp_path / "one"), one.should_stop),
        Member(config, RunFolder(tmp_path / "other")),
    ]
    ends: dict[int, AnyRecord] = {}
    for number, record in train_together(members):
        one.see(record)
        ends[number] = record
        if record == PhaseRecord(phase=COUNTING):
            unblock.set()
    assert ends[0] == stopped(0)
    assert isinstance(ends[1], EndRecord)
    assert ends[1].reason == "finished"

    unblock.clear()
    members = [
        Member(config, RunFolder(tmp_path / str(number)), both.should_stop) for number in (0, 1)
    ]
    for number, record in train_together(members):
        both.see(record)
        ends[number] = record
    assert both.seconds < STOP_SECONDS
    assert ends == {0: stopped(0), 1: stopped(0)}


def test_a_resumed_run_stopped_before_it_trains_stays_at_its_checkpoint(
    config: RunConfig, tmp_path: Path, block
):
    folder = RunFolder(tmp_path / "run")
    for record in train(config, folder):
        if isinstance(record, MetricsRecord) and record.step == 8:
            break
    block("train")
    stopper = Stopper(COUNTING, StopRequest.STOP)
    for record in train(config, folder, should_stop=stopper.should_stop, resume=True):
        stopper.see(record)
    assert stopper.seconds < STOP_SECONDS
    assert stopper.records[-1] == stopped(6)


def test_saving_activations_can_be_aborted_while_text_is_read(
    config: RunConfig, tmp_path: Path, block
):
    from sae_engine.activations.writer import save_activations

    block("train")
    began: list[float] = []

    def abort() -> None:
        began.append(time.monotonic())
        if time.monotonic() - began[0] > 1:
            raise UserError("aborted")

    with pytest.raises(UserError, match="aborted"):
        collected(save_activations(config, tmp_path / "saved", abort))
    assert time.monotonic() - began[0] < 1 + STOP_SECONDS


TRAIN = """
import json, time
from pathlib import Path
from sae_engine.files import RunFolder
from sae_engine.presets import validate_config
from sae_engine.schema.records import StopRequest
from sae_engine.training.loop import train
config, requested = validate_config({config!r}), Path({requested!r})
stop = lambda: StopRequest.STOP if requested.exists() else StopRequest.NONE
*_, last = train(config, RunFolder(Path({folder!r})), should_stop=stop)
print(json.dumps([last.model_dump(mode="json"), time.time() - requested.stat().st_mtime]))
"""
DATASET = {"data": {"dataset": "some/texts", "ctx_len": 32}, "train": {"total_tokens": 4000}}
MODEL = {"model": {"name": "some/model", "layer": 1}, "train": {"total_tokens": 4000}}


@pytest.mark.parametrize(
    ("config", "failing", "failure"),
    [
        (DATASET, "train.jsonl", "hangs up"),
        (DATASET, "train.jsonl", "stalls"),
        (MODEL, ".safetensors", "stalls"),
    ],
)
def test_a_stop_is_noticed_while_the_hub_fails(
    tmp_path: Path, model_folders, config: dict, failing: str, failure: str
):
    """Once the hub hangs up, the datasets library pauses for 5 seconds between its 20 tries."""
    requested = tmp_path / "requested"
    with serve() as hub:
        hub.add("datasets", "some/texts", {"train.jsonl": b'{"text": "a few words"}\n' * 50_000})
        hub.add("models", "some/model", folder_files(model_folders["gemma2"]))
        if failure == "hangs up":
            hub.hang_ups[failing] = 10**6
        else:
            hub.stalls.add(failing)
        hub.on_failure = requested.touch
        code = TRAIN.format(config=config, requested=str(requested), folder=str(tmp_path / "run"))
        end, seconds = ask(code, hub, tmp_path / "home")
    assert (end["kind"], end["reason"], end["step"]) == ("end", "stopped", 0)
    assert seconds < STOP_SECONDS
