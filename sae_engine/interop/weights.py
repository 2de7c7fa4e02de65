"""A file of tensors, and its conversion to this project's convention.

Used by `load`. Pickles are never opened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.sae.autoencoders import SAE, sae_of

NAMES = (
    "sae.safetensors",
    "sae_weights.safetensors",
    "params.npz",
    "params.safetensors",
    "ae.safetensors",
)
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
LARGEST_NORM_SPREAD = 1e-2
"""Largest relative difference of decoder norms at which TopK is converted: it changes the ranking
only of near ties.
"""


class Weights:
    """A file's tensors in float32, with `w_enc` renamed to `W_enc`, and its settings file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        """Metadata of a safetensors file."""
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            else:
                with safe_open(path, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    self.metadata = file.metadata() or {}
        except Exception as error:
            raise UserError(f"'{path}' cannot be read as tensors: {error}") from error
        self.tensors = {re.sub("^w_", "W_", name): t.float() for name, t in tensors.items()}

    @classmethod
    def at(cls, path: Path) -> Weights:
        """Read the file `path`, or the SAE in the folder `path`; raises `UserError`."""
        if path.is_dir():
            files = [path / name for name in NAMES if (path / name).is_file()]
            files += [file for file in sorted(path.iterdir()) if file.suffix in PICKLES]
            if not files:
                raise UserError(f"The folder '{path}' has none of {', '.join(NAMES)}.")
            path = files[0]
        if path.suffix in PICKLES:
            raise UserError(
                f"'{path}' is a pickle, which can run code when opened. If you trust it, convert "
                f"it: safetensors.torch.save_file({{k: v.contiguous() for k, v in "
                f"torch.load('{path.name}', weights_only=True).items()}}, "
                f"'{path.stem}.safetensors')."
            )
        if not path.is_file():
            raise UserError(f"There is no SAE at '{path}'.")
        return cls(path)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UserError(f"'{self.path}' has no tensor '{name}'.")
        return self.tensors[name]

    def has_beside(self, name: str) -> bool:
        return (self.path.parent / name).is_file()

    def settings(self, name: str) -> dict[str, Any]:
        """Read the JSON file `name` next to the tensors; raises `UserError`."""
        path = self.path.parent / name
        try:
            tree = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"'{path}' cannot be read: {error}.") from error
        if not isinstance(tree, dict):
            raise UserError(f"'{path}' is not a JSON object.")
        return tree

    def k(self, value: Any) -> int:
        """Check a k from the settings; raises `UserError` if it is not a number."""
        if not isinstance(value, int):
            raise UserError(f"'{self.path}' does not say its k, the number of active latents.")
        return value

    def refuse(self, what: str, instead: str) -> NoReturn:
        raise UserError(f"'{self.path}' is {what}, which is not supported; only {instead} are.")

    @torch.no_grad()
    def converted(
        self,
        W_enc: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        notes: list[str],
        *,
        k: int | None = None,
        threshold: Tensor | None = None,
        centers: bool = True,
        ranks_by_norm: bool = False,
    ) -> SAE:
        """The same SAE with decoder rows of unit norm: TopK with `k`, JumpReLU with `threshold`
        (a scalar or [d_sae]).

        `centers`: its encoder reads x - b_dec; otherwise x W_enc + b_enc =
        (x - b_dec) W_enc + (b_enc + b_dec W_enc). `ranks_by_norm`: its TopK ranks activations times
        row norms, as ours does; otherwise the norms must be equal. Appends to `notes` what is not
        exact.
        """
        if k is not None and not ranks_by_norm:
            self._require_equal_norms(W_dec.norm(dim=1), notes)
        if threshold is not None and threshold.numel() == 1:
            threshold = threshold.reshape(()).expand(len(W_dec))
        sae = sae_of(
            W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, k=k, threshold=threshold
        )  # fmt: skip
        if not centers:
            sae.b_enc.add_(W_enc @ b_dec)
        return sae.folded(1.0)

    def _require_equal_norms(self, norms: Float[Tensor, " d_sae"], notes: list[str]) -> None:
        spread = (norms.max() / norms.min() - 1).item()
        if not spread <= LARGEST_NORM_SPREAD:
            raise UserError(
                f"'{self.path}' keeps the k largest pre-activations, but its decoder rows differ "
                f"in norm ({norms.min():.3g} to {norms.max():.3g}), so it cannot be converted to "
                "rows of unit norm; rescale the rows to equal norms in the library that trained it."
            )
        if spread > 1e-4:
            notes.append(
                f"Its decoder rows differ in norm by {spread:.1%} and were scaled to unit norm, "
                "so the choice of the k largest latents may differ in near ties."
            )
