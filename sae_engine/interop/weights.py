"""A file of tensors, and its conversion to this project's convention. Used by `load`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from sae_engine.errors import UserError, cause_of
from sae_engine.interop.files import PICKLES, SAEFile
from sae_engine.interop.pickles import as_safetensors
from sae_engine.sae.autoencoders import SAE, sae_of


class Weights:
    """A file's tensors in float32, with `w_enc` renamed to `W_enc`."""

    def __init__(self, file: SAEFile) -> None:
        """Read the tensors, from the hub if need be; raises `UserError`."""
        self.file = file
        self.path = file.fetch(file.place.name)
        if self.path.suffix in PICKLES:
            with as_safetensors(self.path) as converted:
                tensors = _tensors(converted)
        else:
            tensors = _tensors(self.path)
        if complex_ones := [name for name, t in tensors.items() if t.is_complex()]:
            raise UserError(f"'{file.shown}': {complex_ones[0]} holds complex numbers.")
        self.tensors = {re.sub("^w_", "W_", name): t.float() for name, t in tensors.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UserError(f"'{self.file.shown}' has no tensor '{name}'.")
        tensor = self.tensors[name]
        if tensor.ndim != 2 and (name.startswith("W_") or name.endswith(".weight")):
            shape = list(tensor.shape)
            raise UserError(f"'{self.file.shown}': {name} has shape {shape} instead of two axes.")
        return tensor

    @property
    def shapes(self) -> str:
        return ", ".join(f"{name} {list(t.shape)}" for name, t in self.tensors.items())

    def k(self, value: Any) -> int:
        """Check a k from the settings; raises `UserError` if it is not a whole number."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(
                f"'{self.file.shown}' does not say its k, the number of active latents."
            )
        return value

    @torch.no_grad()
    def converted(
        self,
        W_enc: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        *,
        k: int | None = None,
        threshold: Tensor | None = None,
        centers: bool = True,
        removes_mean: bool = False,
        ranks_by_norm: bool = False,
        signed: bool = False,
    ) -> SAE:
        """The same SAE in our convention: TopK with `k`, JumpReLU with `threshold` (a scalar or
        [d_sae]).

        `centers`: its encoder reads x - b_dec; otherwise x W_enc + b_enc =
        (x - b_dec) W_enc + (b_enc + b_dec W_enc). `removes_mean`: it reads x minus the mean over
        x's coordinates, which is linear in x and so part of the encoder; x_hat gets the mean back.
        `ranks_by_norm`: its TopK ranks pre-activations times row norms; otherwise its norms are
        kept. `signed`: it keeps the largest absolute values. The negative side of latent i becomes
        latent i + d_sae, with encoder, bias and decoder row negated: then TopK of the positive
        values is the same map.
        """
        if b_enc.ndim != 1 or b_dec.ndim != 1:  # a scalar would fit everywhere
            raise UserError(
                f"'{self.file.shown}' has a bias that is not a vector; its tensors are "
                f"{self.shapes}."
            )
        if removes_mean:
            means = W_enc.mean(dim=1)
            W_enc = W_enc - means[:, None]
            b_enc = b_enc - means * b_dec.sum() if centers else b_enc
        if not centers:
            b_enc = b_enc + W_enc @ b_dec
        if signed:
            W_enc, b_enc, W_dec = (torch.cat([t, -t]) for t in (W_enc, b_enc, W_dec))
        if threshold is not None and threshold.numel() == 1:
            threshold = threshold.reshape(()).expand(len(W_dec))
        try:
            sae = sae_of(
                W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, k=k, threshold=threshold,
                ranks_by_norm=k is None or ranks_by_norm,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"'{self.file.shown}' is not a usable SAE: {error}") from None
        sae.passes_mean = removes_mean
        return sae.folded(1.0)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"'{path}' cannot be read as tensors: {cause_of(error)}") from error
