"""The TopK sparse autoencoder: its equations, its trainable form, its published file.

Fed by `train`; read by `evaluate`, `feature_index.build` and anyone who loads `sae.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_engine.errors import UserError
from sae_engine.kernels import decode, select_topk


class Code(NamedTuple):
    """A sparse code: the kept activations (some may be 0: not active) and their latents'
    numbers.
    """

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]


class TopKSAE(nn.Module):
    """z = TopK(ReLU((x - b_dec) W_enc + b_enc)),  x_hat = z W_dec + b_dec   (Gao et al. 2024, arXiv
    2406.04093)

    TopK keeps the k latents with the largest ReLU(pre_i) |W_dec,i|, so that a latent's row can be
    given unit norm, the norm folded into its encoder, without changing any code. In memory both
    matrices are rows of latents, [d_sae, d_in]; the published file has Gemma Scope's orientation,
    `W_enc [d_in, d_sae]`.
    """

    def __init__(self, d_in: int, d_sae: int, k: int, *, tied: bool = False) -> None:
        super().__init__()
        self.k = k
        self.tied = tied
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        if not tied:
            self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def encoder_rows(self) -> Float[Tensor, "d_sae d_in"]:
        return self.W_dec if self.tied else self.W_enc

    @torch.no_grad()
    def initialize_(self, seed: int, b_dec: Float[Tensor, " d_in"]) -> None:
        """Random unit-norm decoder rows, the encoder their transpose, the given decoder bias."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(self.d_sae, self.d_in, generator=generator)
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        if not self.tied:
            self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()
        self.b_dec.copy_(b_dec)

    def pre_activations(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        return torch.addmm(self.b_enc, x - self.b_dec, self.encoder_rows.T)

    def encode(self, x: Float[Tensor, "n d_in"]) -> Code:
        return self.code_of(self.pre_activations(x))

    def code_of(self, pre: Float[Tensor, "n d_sae"]) -> Code:
        """Keep the k latents of each row that move the reconstruction most."""
        return Code(*select_topk(pre, self.W_dec.detach().norm(dim=1), self.k))

    def decode(self, code: Code) -> Float[Tensor, "n d_in"]:
        return decode(code.acts, code.indices, self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Give every decoder row unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Take away the part of each decoder row's gradient that would only change the row's
        norm.
        """
        assert self.W_dec.grad is not None
        along = (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True)
        self.W_dec.grad.sub_(
            along * self.W_dec / self.W_dec.pow(2).sum(dim=1, keepdim=True).clamp_min(1e-12)
        )

    @torch.no_grad()
    def folded(self, scale: float) -> TopKSAE:
        """The same map on raw activations x instead of scaled ones `scale * x`, with unit-norm
        decoder rows.

        With s the scale and n_i the row norms: W_enc n, W_dec / n, b_enc n / s, b_dec / s; codes
        are divided by s and multiplied by n, their latents stay the same.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(1e-12)
        plain = TopKSAE(self.d_in, self.d_sae, self.k).to(self.W_dec.device)
        plain.W_enc.copy_(self.encoder_rows * norms[:, None])
        plain.W_dec.copy_(self.W_dec / norms[:, None])
        plain.b_enc.copy_(self.b_enc * norms / scale)
        plain.b_dec.copy_(self.b_dec / scale)
        return plain.requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write the published file. Call it on a `folded` SAE; publish the path with
        `files.published_file`.
        """
        save_file(
            {
                "W_enc": self.encoder_rows.detach().T.contiguous(),
                "b_enc": self.b_enc.detach(),
                "W_dec": self.W_dec.detach().contiguous(),
                "b_dec": self.b_dec.detach(),
            },
            path,
            metadata={"activation": "topk", "k": str(self.k)},
        )

    @classmethod
    def load(cls, path: Path | str) -> TopKSAE:
        """Read a published file; raises `UserError` if it is not one."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {
                    name: file.get_tensor(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")
                }
                k = int(metadata["k"])
        except Exception as error:
            raise UserError(f"'{path}' is not a TopK SAE in this format: {error}") from error
        d_sae, d_in = tensors["W_dec"].shape
        sae = cls(d_in, d_sae, k)
        with torch.no_grad():
            sae.W_enc.copy_(tensors["W_enc"].T)
            for name in ("b_enc", "W_dec", "b_dec"):
                getattr(sae, name).copy_(tensors[name])
        return sae.requires_grad_(False)


def write_sae_config(
    path: Path, sae: TopKSAE, *, model_name: str, hook_name: str, dataset: str, ctx_len: int
) -> None:
    """Write `cfg.json`: what the published tensors are and where their inputs come from."""
    path.write_text(
        json.dumps(
            {
                "architecture": "topk",
                "d_in": sae.d_in,
                "d_sae": sae.d_sae,
                "k": sae.k,
                "activation": "topk(relu((x - b_dec) @ W_enc + b_enc), k)",
                "dtype": "float32",
                "model_name": model_name,
                "hook_name": hook_name,
                "dataset": dataset,
                "ctx_len": ctx_len,
            },
            indent=2,
        )
        + "\n",
        "utf-8",
    )
