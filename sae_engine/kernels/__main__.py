"""Compile the CPU kernels now, instead of at the first training step: `python -m
sae_engine.kernels`. The machine code is kept beside the source.
"""

from __future__ import annotations

import torch

from sae_engine.kernels.cpu import CpuKernels, Moments


def compile_all() -> None:
    """Do one step of every kind."""
    n, d_in, d_sae, k = 8, 4, 32, 2
    W_dec, W_enc = torch.randn(d_sae, d_in), torch.randn(d_sae, d_in)
    x, b_enc = torch.randn(n, d_in), torch.zeros(d_sae)
    kernels = CpuKernels(W_dec, W_enc, k)
    codes = kernels.forward(x, b_enc)
    of_dead = kernels.forward_auxk(x, b_enc, torch.arange(d_sae // 2), k)
    found = kernels.gradients(x, (codes, x), (of_dead, x), 0.0, normalize=True)
    kernels.squared_norm(found)
    moments = Moments(torch.zeros_like(W_dec), torch.zeros_like(W_dec))
    kernels.update(found, moments, moments, clip=1.0, lr=0.0, step=1)


if __name__ == "__main__":
    compile_all()
