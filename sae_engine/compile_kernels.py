"""Compile the CPU kernels ahead of the first run: `python -m sae_engine.compile_kernels`.

Run when installing; `kernels.compiled` says where the machine code is kept.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from sae_engine.features.index.build import IndexCorpus, build_index
from sae_engine.features.index.codes import CorpusEncoder
from sae_engine.files import RunFolder
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.compiled_step import CompiledStepper
from sae_engine.sae.inference import open_coder
from sae_engine.sae.stepper import DeadLatents, StepSettings

WIDE = 2**16 + 1
"""The fewest latents whose numbers an index stores in 32 bits instead of 16."""


def compile_all() -> None:
    """Run each kernel once with every combination of types that a run uses: a training step with
    all its options, a reconstruction as in an evaluation, and a narrow and a wide feature index.
    """
    x = torch.randn(8, 4)
    sae = TopKSAE(4, 32, 2)
    sae.initialize_(0, torch.zeros(4))
    objective = StepSettings(4.0, 1 / 32, 0.0, 1.0, normalize_decoder=True)
    CompiledStepper(sae).step(x, objective, DeadLatents.of(torch.arange(16), 32), 0.0)
    open_coder(sae).reconstruct(x)
    for d_sae in (sae.d_sae, WIDE):
        with (
            tempfile.TemporaryDirectory() as folder,
            CorpusEncoder(Path(folder), _first, d_sae=d_sae, k=1, device=x.device) as encoder,
        ):
            encoder.add(x)
            build_index(
                RunFolder(folder),
                step=0,
                tokens=0,
                corpus=IndexCorpus(encoder.finish(), np.zeros(8, np.uint32), np.array([0, 8])),
                W_dec=torch.zeros(d_sae, 4),
                tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
                vocab_size=1,
                write_sae=Path.touch,
            )


def _first(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in which the first latent is active."""
    return torch.ones(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64)


if __name__ == "__main__":
    compile_all()
