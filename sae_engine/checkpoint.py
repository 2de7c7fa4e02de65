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
from sae_engine.sae import TopKSAE

FORMAT = 1


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


def save_checkpoint(
    folder: RunFolder,
    sae: TopKSAE,
    optimizer: torch.optim.Adam,
    since_fired: Tensor,
    state: TrainState,
) -> None:
    """Publish the state as `checkpoints/last.safetensors`, in one rename."""
    tensors: dict[str, Tensor] = {"since_fired": since_fired}
    for name, parameter in sae.named_parameters():
        tensors[f"sae.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{name}.{key}"] = value
    described = {"format": FORMAT, **state._asdict()}
    with published_file(folder.checkpoint) as path:
        save_file(tensors, path, metadata={"state": json.dumps(described)})


def load_checkpoint(
    folder: RunFolder, sae: TopKSAE, optimizer: torch.optim.Adam, since_fired: Tensor
) -> TrainState:
    """Fill SAE, optimizer and counters in place; return the rest.

    Raises `UserError` if there is no checkpoint or it does not fit.
    """
    path = folder.checkpoint
    try:
        with safe_open(path, framework="pt", device=str(since_fired.device)) as file:
            described: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint at '{path}' to resume from.") from None
    except Exception as error:
        raise UserError(f"The checkpoint '{path}' cannot be read: {error}") from error
    if described.pop("format") != FORMAT:
        raise UserError(f"The checkpoint '{path}' was written by another version of this program.")
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(tensors[f"sae.{name}"])
            prefix = f"adam.{name}."
            optimizer.state[parameter] = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
        since_fired.copy_(tensors["since_fired"])
    window, offset, cursor = described.pop("stream")
    return TrainState(stream=StreamState(window, offset, Cursor(*cursor)), **described)
