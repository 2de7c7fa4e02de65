"""The whole state of a run in one file, from which a resumed run continues as if it had never
stopped.

Written and read by `run`. Tensors and numbers only; nothing is unpickled. The newest checkpoint and
the one before it are kept, so a file damaged by a failing disk costs only the steps between them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_engine.activations.stream import SourceCursor, StreamState
from sae_engine.errors import UserError, cause_of
from sae_engine.files import RunFolder, published_file
from sae_engine.sae.trainer import SAETrainer
from sae_engine.text.order import RowCursor
from sae_engine.text.packing import Cursor

FORMAT = 3


class TrainState(NamedTuple):
    """Everything but the tensors of the SAE and the optimizer."""

    step: int
    tokens: int
    seconds: float
    """Training time so far, over all starts of the run."""
    scale: float
    """Factor on the inputs during training."""
    variance: float
    """Variance of the scaled inputs, the loss's denominator; fixed at the start."""
    median_norm: float
    """Median norm of the inputs, from which the limit for outliers follows; fixed at the start."""
    outlier_tokens: int
    """Training tokens left out so far."""
    best_fvu: float
    stream: StreamState
    fingerprint: str
    """Identifies the settings, the tokenizer and the SAE's shape that the state belongs to."""
    contents: tuple[str, ...] = ()
    """The hashes of `Feed.contents`; none if written before they were kept."""
    overlap: str = ""
    """Which held-out text has been seen in training text; see `TextOverlap`."""
    device: str = ""
    """`device_kind` of the device that it was trained on; empty if written before kinds were kept.
    """


class UnreadableCheckpointError(UserError):
    """A checkpoint is missing or damaged."""


def device_kind(device: torch.device) -> str:
    """The hardware on which the bits of a run depend: a GPU's name, or the vector instructions of a
    CPU. On a CPU they also depend on the number of threads, which is not kept.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU with {torch.backends.cpu.get_cpu_capability()}"


class CheckpointWriter:
    """Writes a run's checkpoints from copies, while the run trains on: a slow disk holds it up only
    if a checkpoint takes longer than the steps until the next.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def save(self, trainer: SAETrainer, state: TrainState) -> None:
        """Begin to write; raises what went wrong with the checkpoint before, such as
        `DiskFullError`.
        """
        self.wait()
        tensors = {n: t.detach().to("cpu", copy=True) for n, t in trainer.tensors().items()}
        self._thread = Thread(target=self._write, args=(tensors, state), name="checkpoint")
        self._thread.start()

    def _write(self, tensors: Mapping[str, Tensor], state: TrainState) -> None:
        try:
            save_checkpoint(self._folder, tensors, state)
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Until the last checkpoint is published; raises what went wrong with it."""
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the last checkpoint, published or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def save_checkpoint(folder: RunFolder, tensors: Mapping[str, Tensor], state: TrainState) -> None:
    """Publish a trainer's tensors and the rest as `checkpoints/last.safetensors`, in one rename;
    the checkpoint before it becomes `previous.safetensors`. Raises `DiskFullError`, and then leaves
    both unchanged.
    """
    described = {"format": FORMAT, "checksum": _checksum(tensors), **state._asdict()}
    with published_file(folder.checkpoint, keep=folder.previous_checkpoint) as path:
        save_file(dict(tensors), path, metadata={"state": json.dumps(described)})


def load_checkpoint(folder: RunFolder, trainer: SAETrainer) -> tuple[TrainState, str | None]:
    """Load the newest readable checkpoint into the trainer's SAE, optimizer and counters. Return
    the rest, and a sentence about the damage if the newest file could not be read.

    Raises `UserError` if there is no readable checkpoint.
    """
    device = str(trainer.since_fired.device)
    notice = None
    try:
        described, tensors = _read(folder.checkpoint, device)
    except UnreadableCheckpointError as error:
        if not folder.previous_checkpoint.exists():
            raise
        described, tensors = _read(folder.previous_checkpoint, device)
        step = described["step"]
        notice = f"{error} The run continues from the previous checkpoint, at step {step}."
    trainer.load_(tensors)
    window, offset, cursor = described.pop("stream")
    stream = StreamState(window, offset, cursor_from_json(cursor))
    contents = tuple(described.pop("contents", ()))
    return TrainState(stream=stream, contents=contents, **described), notice


def cursor_from_json(saved: list[Any]) -> SourceCursor:
    """A position in the corpus from its JSON."""
    if isinstance(saved[0], int):
        return Cursor(*saved)
    starts, counts, given, *rest = saved
    ends_at_any_epoch = rest[0] if rest else True  # until pools were kept whole in mixtures
    return RowCursor(
        tuple(Cursor(*start) for start in starts), tuple(counts), given, ends_at_any_epoch
    )


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors of a checkpoint; raises `UnreadableCheckpointError`."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            described: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UnreadableCheckpointError(
            f"There is no checkpoint at '{path}' to resume from."
        ) from None
    except Exception as error:
        raise UnreadableCheckpointError(
            f"The checkpoint '{path}' cannot be read: {cause_of(error)}."
        ) from error
    if described.pop("format") != FORMAT:
        raise UserError(f"The checkpoint '{path}' was written by another version of this program.")
    if described.pop("checksum", None) != _checksum(tensors):
        raise UnreadableCheckpointError(
            f"The checkpoint '{path}' is damaged: its checksum differs from what was written."
        )
    return described, tensors


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all bytes, in the order of the tensors' names."""
    checksum = 0
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(values.numpy().data, checksum)
    return checksum
