"""Sparse autoencoders: their equations, and the file they are saved to and loaded from.

Trained by `trainer`, made from other formats by `interop`; read by `training`, `features`,
`playground` and callers of the library.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_engine.errors import UserError, cause_of
from sae_engine.kernels import decode, select_topk

BY_PRE_ACTIVATION = "pre_activation"
"""In a file's metadata and `cfg.json`, `ranks_by` of a TopK that does not rank by norm."""
INIT_ROWS = 4096
"""Rows drawn at once, so that initializing makes no second copy of a large matrix."""

# The tests check types function by function, where typing.Self has no meaning.
_SAE = TypeVar("_SAE", bound="SAE")


class Code(NamedTuple):
    """A sparse code: the kept activations, 0 where a latent is not active, and their latents'
    indices.
    """

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]


class SAE(nn.Module, ABC):
    """pre = (x - b_dec) W_enc + b_enc,  z = activation(pre),  x_hat = z W_dec + b_dec

    Subclasses define the activation. In memory both matrices have one row per latent,
    [d_sae, d_in]; the published file has Gemma Scope's orientation, `W_enc [d_in, d_sae]`.
    """

    architecture: ClassVar[str]
    formula: ClassVar[str]
    """The code as a formula, with the names of the published file."""
    k: int | None
    """Width of every code; None if it varies with the number of active latents."""
    ranks_by_norm = True
    """Only False for a `TopKSAE` trained elsewhere."""
    passes_mean = False
    """Whether x_hat also has the mean over x's coordinates: of an SAE trained elsewhere, on
    activations without it.
    """

    def __init__(self, d_in: int, d_sae: int, *, tied: bool = False) -> None:
        super().__init__()
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

    @property
    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        return self.W_dec.detach().norm(dim=1)

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        # aminmax propagates NaN and, unlike isfinite, allocates no copy of a large matrix.
        return all(
            bool(extreme.isfinite())
            for tensor in self.state_dict().values()
            for extreme in tensor.aminmax()
        )

    def pre_activations(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        return torch.addmm(self.b_enc, x - self.b_dec, self.encoder_rows.T)

    def encode(self, x: Float[Tensor, "n d_in"]) -> Code:
        return self.code_of(self.pre_activations(x))

    @abstractmethod
    def code_of(self, pre: Float[Tensor, "n d_sae"]) -> Code:
        """The code of the given pre-activations."""

    def decode(self, code: Code) -> Float[Tensor, "n d_in"]:
        return decode(code.acts, code.indices, self.W_dec) + self.b_dec

    def reconstruct(self, x: Float[Tensor, "n d_in"], code: Code) -> Float[Tensor, "n d_in"]:
        """x_hat of activations and their code."""
        x_hat = self.decode(code)
        return x_hat + x.mean(dim=-1, keepdim=True) if self.passes_mean else x_hat

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        return self.reconstruct(x, self.encode(x))

    @torch.no_grad()
    def folded(self: _SAE, scale: float) -> _SAE:
        """The same map on raw activations x instead of scaled ones `scale * x`, with unit-norm
        decoder rows if it `ranks_by_norm`.

        With s the scale and n_i the row norms, or 1: W_enc n, W_dec / n, b_enc n / s, b_dec / s.
        The same latents are active, with their activations multiplied by n / s.
        """
        norms = torch.ones_like(self.b_enc)
        if self.ranks_by_norm:
            norms = self.decoder_norms.clamp_min(1e-12)
        plain = self._blank().to(self.W_dec.device)
        torch.mul(self.encoder_rows, norms[:, None], out=plain.W_enc)
        torch.div(self.W_dec, norms[:, None], out=plain.W_dec)
        plain.b_enc.copy_(self.b_enc * norms / scale)
        plain.b_dec.copy_(self.b_dec / scale)
        plain.passes_mean = self.passes_mean
        return plain.requires_grad_(False)

    @abstractmethod
    def _blank(self: _SAE) -> _SAE:
        """An untied SAE of the same kind and shape, all zero."""

    def save(self, path: Path) -> None:
        """Write `sae.safetensors`. Call it on a `folded` SAE; see `published.publish_sae`."""
        metadata = {"activation": self.architecture}
        if self.k is not None:
            metadata["k"] = str(self.k)
        if not self.ranks_by_norm:
            metadata["ranks_by"] = BY_PRE_ACTIVATION
        if self.passes_mean:
            metadata["passes_mean"] = "true"
        tensors = {"W_enc": self.encoder_rows.detach().T.contiguous()}
        for name, tensor in self.state_dict().items():
            if name != "W_enc":
                tensors[name] = tensor.contiguous()
        save_file(tensors, path, metadata=metadata)
        _sort_metadata(path)

    @classmethod
    def load(cls: type[_SAE], path: Path | str) -> _SAE:
        """Read `sae.safetensors`; raises `UserError` for another kind of file or of SAE."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sae = sae_of(
                W_enc=tensors["W_enc"].T,
                b_enc=tensors["b_enc"],
                W_dec=tensors["W_dec"],
                b_dec=tensors["b_dec"],
                k=int(metadata["k"]) if metadata["activation"] == "topk" else None,
                threshold=tensors["threshold"] if metadata["activation"] == "jumprelu" else None,
                ranks_by_norm=metadata.get("ranks_by") != BY_PRE_ACTIVATION,
            )
            sae.passes_mean = "passes_mean" in metadata
        except Exception as error:
            raise UserError(
                f"'{path}' is not an SAE in SAE Workbench's format: {cause_of(error)}"
            ) from error
        if not isinstance(sae, cls):
            raise UserError(f"'{path}' holds a {sae.architecture} SAE, not a {cls.architecture}.")
        return sae


class TopKSAE(SAE):
    """z = TopK(ReLU(pre)),  pre = (x - b_dec) W_enc + b_enc,  x_hat = z W_dec + b_dec
    (Gao et al. 2024, arXiv 2406.04093)

    TopK keeps the k latents with the largest ReLU(pre_i) |W_dec,i|, so that folding the norm of a
    decoder row into the encoder never changes which latents are kept. SAEs of other libraries keep
    the largest ReLU(pre_i) (not `ranks_by_norm`); their row norms are never folded.
    """

    architecture = "topk"
    formula = "topk(relu((x - b_dec) @ W_enc + b_enc), k)"

    def __init__(
        self, d_in: int, d_sae: int, k: int, *, tied: bool = False, ranks_by_norm: bool = True
    ) -> None:
        super().__init__(d_in, d_sae, tied=tied)
        self.k: int = k
        self.ranks_by_norm = ranks_by_norm

    @torch.no_grad()
    def initialize_(self, seed: int, b_dec: Float[Tensor, " d_in"]) -> None:
        """Random unit-norm decoder rows, the encoder their transpose, the given decoder bias."""
        generator = torch.Generator().manual_seed(seed)
        for rows in self.W_dec.split(INIT_ROWS):
            rows.copy_(torch.randn(rows.shape, generator=generator))
            rows.div_(rows.norm(dim=1, keepdim=True))
        if not self.tied:
            self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()
        self.b_dec.copy_(b_dec)

    def code_of(self, pre: Float[Tensor, "n d_sae"]) -> Code:
        """Keep the k latents of each row that contribute most to the reconstruction, or those with
        the largest pre-activations.
        """
        norms = self.decoder_norms if self.ranks_by_norm else torch.ones_like(self.b_enc)
        return Code(*select_topk(pre, norms, self.k))

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Give every decoder row unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Remove the part of each decoder row's gradient that would only change the row's norm."""
        assert self.W_dec.grad is not None
        along = (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True)
        self.W_dec.grad.sub_(
            along * self.W_dec / self.W_dec.pow(2).sum(dim=1, keepdim=True).clamp_min(1e-12)
        )

    def _blank(self) -> TopKSAE:
        return TopKSAE(self.d_in, self.d_sae, self.k, ranks_by_norm=self.ranks_by_norm)


class JumpReLUSAE(SAE):
    """z = ReLU(pre) where pre > threshold, else 0,  pre = (x - b_dec) W_enc + b_enc,
    x_hat = z W_dec + b_dec   (Rajamanoharan et al. 2024, arXiv 2407.14435)

    One threshold per latent, [d_sae]. Loaded, never trained: Gemma Scope's SAEs, and trained
    BatchTopK and ReLU SAEs, have this form.
    """

    architecture = "jumprelu"
    formula = "relu(pre) * (pre > threshold), pre = (x - b_dec) @ W_enc + b_enc"
    k = None
    threshold: Tensor

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__(d_in, d_sae)
        self.register_buffer("threshold", torch.zeros(d_sae))

    def code_of(self, pre: Float[Tensor, "n d_sae"]) -> Code:
        """Keep what exceeds its threshold; codes are as wide as the fullest row, padded with 0."""
        z = torch.where(pre > self.threshold, torch.relu(pre), 0)
        width = max(1, int((z > 0).sum(dim=1).max()))
        return Code(*z.topk(width, dim=-1, sorted=False))

    @torch.no_grad()
    def folded(self, scale: float) -> JumpReLUSAE:
        plain = super().folded(scale)
        plain.threshold.copy_(self.threshold * self.decoder_norms.clamp_min(1e-12) / scale)
        return plain

    def _blank(self) -> JumpReLUSAE:
        return JumpReLUSAE(self.d_in, self.d_sae)


@torch.no_grad()
def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a file, which safetensors writes in any order, so that equal SAEs are
    equal files.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:
            file.seek(8)
            file.write(text)


def sae_of(
    *,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    k: int | None = None,
    threshold: Tensor | None = None,
    ranks_by_norm: bool = True,
) -> SAE:
    """An SAE with the given tensors, both matrices [d_sae, d_in]: TopK if `k` is given, JumpReLU if
    `threshold` [d_sae] is. `ranks_by_norm` is TopK's.

    Raises `UserError` for shapes that do not fit.
    """
    assert (k is None) != (threshold is None)
    if W_dec.ndim != 2:
        raise UserError(f"W_dec has shape {list(W_dec.shape)} instead of two axes.")
    d_sae, d_in = W_dec.shape
    if k is None:
        sae = JumpReLUSAE(d_in, d_sae)
    else:
        sae = TopKSAE(d_in, d_sae, k, ranks_by_norm=ranks_by_norm)
    given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if threshold is not None:
        given["threshold"] = threshold
    for name, target in sae.state_dict().items():
        if given[name].shape != target.shape:
            raise UserError(
                f"{name} has shape {list(given[name].shape)}, but W_dec needs "
                f"{list(target.shape)} (latents first)."
            )
        target.copy_(given[name])
    if k is not None and not 0 < k <= d_sae:
        raise UserError(f"k = {k} is not between 1 and the number of latents, {d_sae}.")
    return sae.requires_grad_(False)
