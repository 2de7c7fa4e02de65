"""Processes that run the language model for one trainer, so that all GPUs of a machine work for one
run.

`SharedReading` hands blocks of text to whoever is free, itself included, and gives the activations
on in the order of the text. So a run's bits do not depend on the number of readers. Opened by
`feed`.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.activations.stream import ModelSource, TextBlock, TimeCall, extract
from sae_engine.errors import ConfigError, UserError
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig
from sae_engine.text.order import RowCursor

BLOCKS_AHEAD = 2
"""Blocks that a reader is given at a time, so that it never waits for the next."""
POLL_SECONDS = 0.1
CLOSE_SECONDS = 5


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
    """A process with the language model on one device.

    It loads the model while the trainer goes on, and ends when the trainer's end of the pipe
    closes, however that comes about.
    """

    def __init__(self, configs: Sequence[ModelConfig], ctx_len: int, device: str) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        on_device = [config.model_copy(update={"device": device}) for config in configs]
        self._process = context.Process(
            target=_serve,
            args=(theirs, on_device, ctx_len, torch.get_num_threads()),
            name=f"reader on {device}",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self._given: deque[_Pending] = deque()

    @property
    def has_room(self) -> bool:
        return len(self._given) < BLOCKS_AHEAD

    def give(self, block: _Pending) -> None:
        self._given.append(block)
        try:
            self.connection.send(block.text)
        except OSError:
            raise self._lost() from None

    def receive(self, device: torch.device) -> None:
        """Complete the oldest block that was given; raises `UserError` if it failed."""
        try:
            answer = self.connection.recv()
            if isinstance(answer, str):
                raise UserError(f"The {self._process.name} failed: {answer}")
            hooks = [hook.tensor().to(device) for hook in answer]
        except (EOFError, OSError):
            raise self._lost() from None
        self._given.popleft().activations = hooks

    def close(self) -> None:
        self.connection.close()
        self._process.join(CLOSE_SECONDS)
        self._process.kill()
        self._process.join()

    def _lost(self) -> UserError:
        self._process.join(CLOSE_SECONDS)
        return UserError(
            f"The {self._process.name} ended (exit code {self._process.exitcode}); the log may say "
            "why. Resume the run to go on from its last checkpoint."
        )


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
        """Where the next block begins, not where reading ahead has come to."""
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


class _Shipped(NamedTuple):
    """A tensor in memory that is passed on by its descriptor, and so neither copied through the
    pipe nor limited by the size of /dev/shm.
    """

    memory: Any
    num_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Shipped:
        held = tensor.contiguous().cpu()
        values = held.view(torch.uint8).numpy()
        descriptor = os.memfd_create("activations")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                values.tofile(file)
            return cls(DupFd(descriptor), values.nbytes, tuple(held.shape), held.dtype)
        finally:
            os.close(descriptor)

    def tensor(self) -> Tensor:
        """On the CPU; to be called once."""
        descriptor = self.memory.detach()
        try:
            if not self.num_bytes:
                return torch.empty(self.shape, dtype=self.dtype)
            held = mmap.mmap(descriptor, self.num_bytes)
        finally:
            os.close(descriptor)
        return torch.frombuffer(held, dtype=self.dtype).view(self.shape)


def _serve(
    connection: Connection, configs: Sequence[ModelConfig], ctx_len: int, num_threads: int
) -> None:
    """The process of a reader. It uses as many threads as the trainer, because the order of sums
    depends on them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides what Ctrl+C means
    torch.set_num_threads(num_threads)
    try:
        model = LanguageModel.load(configs[0], also=configs[1:], ctx_len=ctx_len)
        while True:
            text: TextBlock = connection.recv()
            ids, at = torch.from_numpy(text.ids), torch.from_numpy(text.at)
            connection.send([_Shipped.of(hook) for hook in extract(model, ids, at=at)])
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # whatever architectures and drivers raise
        logging.getLogger(__name__).exception("a reader failed")
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        connection.send(said)
