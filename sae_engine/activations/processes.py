"""Processes that work for a trainer on one device each, and tensors passed between processes.

Used by `readers`, and by `training` for the SAEs of a sweep.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_engine.errors import UserError

CLOSE_SECONDS = 5


class LostHelperError(UserError):
    """A helper failed or ended, so the pass that it works for cannot continue."""


class _Failed(NamedTuple):
    """A helper's last answer."""

    why: str


class Helper:
    """A process that runs `serve(connection, *args)` on one device.

    It uses as many threads as the trainer, because the order of sums depends on them. It ends when
    the trainer's end of the pipe closes, for whatever reason.
    """

    def __init__(self, kind: str, device: str, serve: Callable[..., None], *args: object) -> None:
        """`kind` names it in messages."""
        context = get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_run,
            args=(theirs, torch.get_num_threads(), serve, args),
            name=f"{kind} on {device}",
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Raises `LostHelperError`."""
        try:
            self.connection.send(message)
        except OSError:
            while self._has_answer():  # the last one may say why the helper failed
                self.receive()
            raise self._lost() from None

    def receive(self) -> Any:
        """The next answer; raises `LostHelperError`."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if isinstance(answer, _Failed):
            raise LostHelperError(f"The {self._process.name} failed: {answer.why}")
        return answer

    def receive_tensors(self) -> list[Tensor]:
        """The next answer, a list of `Shipped`, as tensors on the CPU."""
        shipped: list[Shipped] = self.receive()
        try:
            return [each.tensor() for each in shipped]
        except (EOFError, OSError):
            raise self._lost() from None

    def close(self) -> None:
        self.connection.close()
        self._process.join(CLOSE_SECONDS)
        self._process.kill()
        self._process.join()

    def _has_answer(self) -> bool:
        try:
            return self.connection.poll(CLOSE_SECONDS)
        except OSError:
            return False

    def _lost(self) -> LostHelperError:
        self._process.join(CLOSE_SECONDS)
        return LostHelperError(
            f"The {self._process.name} ended (exit code {self._process.exitcode}); the log may say "
            "why. Resume the run to go on from its last checkpoint."
        )


def _run(
    connection: Connection, num_threads: int, serve: Callable[..., None], args: tuple[object, ...]
) -> None:
    """The process of a helper."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides what Ctrl+C means
    torch.set_num_threads(num_threads)
    try:
        serve(connection, *args)
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # whatever architectures and drivers raise
        logging.getLogger(__name__).exception("a helper failed")
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        connection.send(_Failed(said))


class Shipped(NamedTuple):
    """A tensor in memory that is passed on by its descriptor, and so neither copied through the
    pipe nor limited by the size of /dev/shm.
    """

    memory: Any
    num_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Shipped:
        held = tensor.detach().contiguous().cpu()
        values = held.view(-1).view(torch.uint8).numpy()
        descriptor = os.memfd_create("tensor")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                values.tofile(file)
            return cls(DupFd(descriptor), values.nbytes, tuple(held.shape), held.dtype)
        finally:
            os.close(descriptor)

    def tensor(self) -> Tensor:
        """On the CPU; to be called once, by the process that received it."""
        descriptor = self.memory.detach()
        try:
            return _mapped(descriptor, self.num_bytes, self.shape, self.dtype)
        finally:
            os.close(descriptor)


class SharedTensor:
    """A tensor on the CPU whose memory other processes can map and read."""

    def __init__(self, like: Tensor) -> None:
        """With the shape and type of `like`, filled with zeros."""
        self._num_bytes = like.nbytes
        self._descriptor = os.memfd_create("tensor")
        os.ftruncate(self._descriptor, self._num_bytes)
        self.tensor = _mapped(self._descriptor, self._num_bytes, tuple(like.shape), like.dtype)

    def ship(self) -> Shipped:
        """For one other process."""
        shape, dtype = tuple(self.tensor.shape), self.tensor.dtype
        return Shipped(DupFd(self._descriptor), self._num_bytes, shape, dtype)

    def close(self) -> None:
        """Close the descriptor; no further process can map it."""
        os.close(self._descriptor)


def _mapped(descriptor: int, num_bytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not num_bytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=dtype).view(shape)
