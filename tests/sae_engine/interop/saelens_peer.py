"""Runs SAELens in its own process: `python saelens_peer.py FOLDER`.

Makes an SAE of every kind in FOLDER/theirs, and opens those in FOLDER/ours. Next to each it writes
`codes.npz`: SAELens's codes and reconstructions of FOLDER/x.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

folder = Path(sys.argv[1])
x = torch.from_numpy(np.load(folder / "x.npy"))
shape = {"d_in": x.shape[1], "d_sae": 40}


@torch.no_grad()
def randomize(sae: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sae.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.copy_(values.abs() if "threshold" in name else values)


@torch.no_grad()
def run(sae: SAE, where: Path) -> None:
    z = sae.encode(x)
    z = z.to_dense() if z.is_sparse else z
    np.savez(where / "codes.npz", z=z.numpy(), x_hat=sae.decode(z).numpy())


training = {
    "topk": TopKTrainingSAE(TopKTrainingSAEConfig(**shape, k=5)),
    "batchtopk": BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape, k=5)),
}
inference = {
    "standard": StandardSAE(StandardSAEConfig(**shape)),
    "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**shape)),
    "plain_topk": TopKSAE(TopKSAEConfig(**shape, k=5)),
    "abstopk": AbsTopKSAE(AbsTopKSAEConfig(**shape, k=5)),
    "gated": GatedSAE(GatedSAEConfig(**shape)),
    "uncentered": JumpReLUSAE(JumpReLUSAEConfig(**shape, apply_b_dec_to_input=False)),
}
for name, sae in (training | inference).items():
    randomize(sae)
    where = folder / "theirs" / name
    if name in training:
        sae.save_inference_model(where)
        run(SAE.load_from_disk(where), where)
    else:
        sae.save_model(where)
        run(sae, where)
checkpoint = folder / "theirs" / "checkpoint"  # of a BatchTopK SAE in training, not yet JumpReLU
training["batchtopk"].save_model(checkpoint)
run(SAE.load_from_disk(folder / "theirs" / "batchtopk"), checkpoint)

for where in sorted((folder / "ours").iterdir()):
    loaded = SAE.load_from_disk(where)
    assert loaded.cfg.metadata.hook_name == "blocks.2.hook_resid_post", loaded.cfg.metadata
    run(loaded, where)
