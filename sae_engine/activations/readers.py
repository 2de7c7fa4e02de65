"""Processes that run the language model for one trainer, so that all GPUs of a machine work for one
run.

`SharedReading` gives each block to a free reader (itself included) and yields the activations in
text order. So a run's bits do not depend on the number of readers. Opened by `feed`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from multiprocessing.connection import Connection, wait

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.activations.processes import Helper, Shipped
from sae_engine.activations.stream import ModelSource, TextBlock, TimeCall, extract
from sae_engine.errors import ConfigError
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig
from sae_engine.text.order import RowCursor

BLOCKS_AHEAD = 2
"""Blocks given to a reader in advance, so that it never waits for the next."""
POLL_SECONDS = 0.1


def reader_devices(config: ModelConfig, own: torch.device) -> list[str]:
    """The devices of the readers that help a trainer on the device `own`.

    Raises `ConfigError` if `model.readers` asks for more than the machine has.
    """
    gpus = torch.cuda.device_count() if own.type == "cuda" else 0
    is_free = config.device in ("auto", "cuda") and config.device_map is None
    wanted = config.readers or (max(1, gpus) if is_free else 1)
    if wanted == 1:
        return []
    if config.device_map is not None:
        raise ConfigError.of("model.readers", "With model.device_map, there can be only one.")
    if not hasattr(os, "memfd_create"):
        raise ConfigError.of("model.readers", "More than one needs Linux.")
    if own.type == "cpu":
        return ["cpu"] * (wanted - 1)
    if wanted > gpus:
        raise ConfigError.of(
            "model.readers", f"{wanted} were asked for, but {gpus} GPUs can be used."
        )
    others = [number for number in range(gpus) if number != (own.index or 0)]
    return [f"cuda:{number}" for number in others[: wanted - 1]]


class Reader:
    """A process that loads the language model on one device while the trainer continues."""

    def __init__(self, configs: Sequence[ModelConfig], ctx_len: int, device: str) -> None:
        on_device = [config.model_copy(update={"device": device}) for config in configs]
        self._helper = Helper("reader", device, _serve, on_device, ctx_len)
        self._given: deque[_Pending] = deque()

    @property
    def connection(self) -> Connection:
        """Ready when there is something to receive."""
        return self._helper.connection

    @property
    def has_room(self) -> bool:
        return len(self._given) < BLOCKS_AHEAD

    def give(self, block: _Pending) -> None:
        self._given.append(block)
        self._helper.send(block.text)

    def receive(self, device: torch.device) -> None:
        """Complete the oldest block that was given; raises `LostHelperError` if it failed."""
        hooks = self._helper.receive_tensors()
        self._given.popleft().activations = [hook.to(device) for hook in hooks]

    def close(self) -> None:
        self._helper.close()


class SharedReading:
    """The blocks of a `ModelSource`, read by several processes."""

    def __init__(
        self,
        source: ModelSource,
        readers: Sequence[Reader],
        device: torch.device,
        check_stop: CheckStop = never_stop,
        time_call: TimeCall = nullcontext,
    ) -> None:
        self._source = source
        self._readers = {reader.connection: reader for reader in readers}
        self._device = device
        self._check_stop = check_stop
        self._time_call = time_call
        self._ahead: deque[_Pending] = deque()
        self._most_ahead = BLOCKS_AHEAD * len(readers) + 1

    @property
    def cursor(self) -> RowCursor:
        """Where the next block begins, however far reading is ahead."""
        return self._ahead[0].text.cursor if self._ahead else self._source.cursor

    @property
    def last(self) -> TextBlock:
        """The text of the last block."""
        return self._source.last

    def next_block(self) -> list[Float[Tensor, "n d_in"]]:
        self._hand_out()
        while (values := self._ahead[0].activations if self._ahead else None) is None:
            if len(self._ahead) < self._most_ahead:
                own = self._take()
                own.activations = self._source.read(own.text)
            else:
                self._wait()
            self._hand_out()
        self._source.give_out(self._ahead.popleft().text)
        return values

    def _take(self) -> _Pending:
        self._ahead.append(_Pending(self._source.next_text()))
        return self._ahead[-1]

    def _hand_out(self) -> None:
        """Receive what is complete, and give every reader text."""
        for connection in wait(self._readers, timeout=0):
            self._readers[connection].receive(self._device)  # pyright: ignore[reportArgumentType]
        for reader in self._readers.values():
            while reader.has_room:
                reader.give(self._take())

    def _wait(self) -> None:
        with self._time_call():
            while not wait(self._readers, timeout=POLL_SECONDS):
                self._check_stop()


class _Pending:
    """A block of text, and its activations once they are there."""

    def __init__(self, text: TextBlock) -> None:
        self.text = text
        self.activations: list[Tensor] | None = None


def _serve(connection: Connection, configs: Sequence[ModelConfig], ctx_len: int) -> None:
    """The process of a reader."""
    model = LanguageModel.load(configs[0], also=configs[1:], ctx_len=ctx_len)
    while True:
        text: TextBlock = connection.recv()
        ids, at = torch.from_numpy(text.ids), torch.from_numpy(text.at)
        connection.send([Shipped.of(hook) for hook in extract(model, ids, at=at)])
