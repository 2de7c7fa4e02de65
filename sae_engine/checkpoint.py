"""The whole state of a run in one file: what a resumed run needs to go on as if it had never
stopped.

Fed and read by `train`. Tensors and numbers only; nothing is unpickled.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_engine.activations import StreamState
from sae_engine.corpus import Cursor
from sae_engine.errors import UserError
from sae_engine.files import RunFolder, published_file
from sae_engine.trainer import SAETrainer

FORMAT = 2


class TrainState(NamedTuple):
    """Everything but the tensors of SAE and optimizer."""

    step: int
    tokens: int
    seconds: float
    """Training time so far, over all starts."""
    scale: float
    """Inputs are multiplied by it while training."""
    variance: float
    """Variance of the scaled input, the loss's denominator; fixed at the start."""
    best_fvu: float
    stream: StreamState
    fingerprint: str
    """Identifies the text, the tokenizer and the shape the state belongs to."""


def save_checkpoint(folder: RunFolder, trainer: SAETrainer, state: TrainState) -> None:
    """Publish the state as `checkpoints/last.safetensors`, in one rename."""
    tensors: dict[str, Tensor] = {"since_fired": trainer.since_fired}
    tensors |= {f"sae.{name}": p.detach() for name, p in trainer.sae.named_parameters()}
    tensors |= {f"adam.{name}": tensor for name, tensor in trainer.stepper.state().items()}
    described = {"format": FORMAT, **state._asdict()}
    with published_file(folder.checkpoint) as path:
        save_file(tensors, path, metadata={"state": json.dumps(described)})


def load_checkpoint(folder: RunFolder, trainer: SAETrainer) -> TrainState:
    """Fill the trainer's SAE, optimizer and counters in place; return the rest.

    Raises `UserError` if there is no checkpoint or it does not fit.
    """
    path = folder.checkpoint
    try:
        with safe_open(path, framework="pt", device=str(trainer.since_fired.device)) as file:
            described: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint at '{path}' to resume from.") from None
    except Exception as error:
        raise UserError(f"The checkpoint '{path}' cannot be read: {error}") from error
    if described.pop("format") != FORMAT:
        raise UserError(f"The checkpoint '{path}' was written by another version of this program.")
    with torch.no_grad():
        for name, parameter in trainer.sae.named_parameters():
            parameter.copy_(tensors[f"sae.{name}"])
        trainer.since_fired.copy_(tensors["since_fired"])
    trainer.stepper.load_state(
        {
            name.removeprefix("adam."): tensor
            for name, tensor in tensors.items()
            if name.startswith("adam.")
        }
    )
    window, offset, cursor = described.pop("stream")
    return TrainState(stream=StreamState(window, offset, Cursor(*cursor)), **described)
