"""Chooses how an SAE's optimizer steps are computed. Called by `trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.autograd_step import AutogradStepper
from sae_engine.sae.compiled_step import CompiledStepper
from sae_engine.sae.stepper import DeadLatents, Stepper, StepSettings

_log = logging.getLogger(__name__)


def open_stepper(sae: TopKSAE) -> Stepper:
    """The fastest stepper that works on the SAE's device."""
    device = sae.W_dec.device
    if device.type == "cpu":
        return CompiledStepper(sae)
    if device.type == "cuda" and find_spec("triton"):
        from sae_engine.sae.triton_step import TritonStepper

        search = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
        obstacle = find_obstacle(device, partial(TritonStepper, search=search))
        if obstacle is None:
            return TritonStepper(sae, search)
        _log.warning("Steps are slower because Triton does not work on this device: %s", obstacle)
    return AutogradStepper(sae)


def find_obstacle(device: torch.device, new_stepper: Callable[[TopKSAE], Stepper]) -> str | None:
    """Why a stepper cannot be used on a device; None if it can.

    It cannot if it raises, or if two steps of a small SAE with dead latents differ from autograd's.
    The device may be too old for Triton, or there may be no C compiler, which Triton needs once per
    machine to build its link to the driver.
    """
    n, d_in, d_sae = 12, 48, 96
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    dead = DeadLatents.of(torch.arange(8, device=device), d_sae)
    settings = StepSettings(float(d_in), 1 / 32, 0.01, 1.0, normalize_decoder=True)

    def trained_weights(new: Callable[[TopKSAE], Stepper]) -> Tensor:
        sae = TopKSAE(d_in, d_sae, k=4).to(device)
        sae.initialize_(0, torch.zeros(d_in, device=device))
        stepper = new(sae)
        for _ in range(2):
            stepper.step(x, settings, dead, lr=1e-3)
        return torch.cat([p.detach().flatten() for p in sae.parameters()])

    try:
        # Adam turns even a gradient of pure rounding error into a full step, so a few weights may
        # differ.
        is_same = torch.isclose(
            trained_weights(new_stepper), trained_weights(AutogradStepper), rtol=1e-4, atol=1e-5
        )
        agreement = is_same.float().mean().item()
    except Exception as error:  # compilers and drivers raise anything
        return f"{type(error).__name__}: {error}"
    return None if agreement > 0.99 else f"{1 - agreement:.0%} of a trial step's result is wrong"
