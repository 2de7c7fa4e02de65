"""Activations with a planted dictionary, and the metrics of every trainer's result.

x = scale (sum_i z_i d_i + noise) + offset, with G random unit directions d_i, of which about 20 are
active at a time: a few often, most rarely (p_i is proportional to 1 / (i + G/64)), with activations
0.5 plus an exponential variable; isotropic noise; one common offset. The scale gives each
coordinate unit variance.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS_PER_CHUNK = 8192
ACTIVE, NOISE, HELDOUT = 20, 0.5, 20_000


class Planted(NamedTuple):
    """Files of the activations and of the planted directions."""

    train: Path
    heldout: Path
    directions: Path


def plant(folder: Path, d_in: int, num_directions: int, num_tokens: int) -> Planted:
    """Create the files unless they exist. The random stream is keyed by chunk, so shorter data are
    a prefix of longer data.
    """
    made = Planted(*(folder / f"{name}.npy" for name in Planted._fields))
    if all(path.exists() for path in made):
        return made
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.Philox(key=(0, 1)))
    directions = random.standard_normal((num_directions, d_in), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    falling = 1 / (np.arange(num_directions) + num_directions / 64)
    probability = np.minimum(falling * ACTIVE / falling.sum(), 0.5)
    offset = random.standard_normal(d_in).astype(np.float32)
    offset *= np.sqrt(d_in) / np.linalg.norm(offset)

    def chunk(purpose: int, number: int) -> NDArray[np.float32]:
        random = np.random.Generator(np.random.Philox(key=(purpose, number)))
        active = random.random((ROWS_PER_CHUNK, num_directions), dtype=np.float32) < probability
        codes = np.zeros(active.shape, np.float32)
        codes[active] = 0.5 + random.exponential(0.5, active.sum()).astype(np.float32)
        noise = random.standard_normal((ROWS_PER_CHUNK, d_in), dtype=np.float32)
        return codes @ directions + noise * np.float32(NOISE / np.sqrt(d_in))

    scale = np.float32(np.sqrt(d_in / chunk(2, 0).var(axis=0).sum()))
    np.save(made.directions, directions)
    for purpose, (path, rows) in enumerate(((made.train, num_tokens), (made.heldout, HELDOUT)), 3):
        out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, d_in))
        for number, first in enumerate(range(0, rows, ROWS_PER_CHUNK)):
            part = out[first : first + ROWS_PER_CHUNK]
            part[:] = chunk(purpose, number)[: len(part)] * scale + offset
        out.flush()
    return made


class Exported(NamedTuple):
    """A trained SAE as all trainers return it: TopK(relu(x W_enc + b_enc), k) W_dec + b_dec."""

    W_enc: Tensor
    """[d_in, d_sae]"""
    b_enc: Tensor
    W_dec: Tensor
    """[d_sae, d_in]"""
    b_dec: Tensor


@torch.no_grad()
def judge(planted: Planted, sae: Exported, k: int) -> dict[str, float]:
    """FVU, L0 and share of dead latents on held-out rows; and MMCS, the mean over the planted
    directions of the largest cosine with a decoder row.
    """
    W_enc, b_enc, W_dec, b_dec = (t.detach().float().contiguous() for t in sae)
    x = torch.from_numpy(np.load(planted.heldout))
    variance = (x.double() - x.double().mean(0)).pow(2).sum()
    error, active = 0.0, 0
    fired = torch.zeros(len(b_enc), dtype=torch.bool)
    for rows in x.split(1000):
        acts, indices = torch.relu(rows @ W_enc + b_enc).topk(k, dim=-1)
        code = torch.zeros(len(rows), len(b_enc)).scatter(1, indices, acts)
        error += (rows - code @ W_dec - b_dec).double().pow(2).sum()
        active += int((acts > 0).sum())
        fired |= (code > 0).any(0)
    rows = torch.nn.functional.normalize(W_dec, dim=1)
    directions = torch.from_numpy(np.load(planted.directions))
    cosines = torch.cat([(d @ rows.T).amax(1) for d in directions.split(512)])
    return {
        "fvu": float(error / variance),
        "l0": active / len(x),
        "dead": 1 - float(fired.float().mean()),
        "mmcs": float(cosines.mean()),
    }
