"""How much larger than the median the norms of a model's activations are: what
`data.max_norm_multiple` must spare.

    python benchmarks/activation_norms.py
    python benchmarks/activation_norms.py --model LOCAL_FOLDER --rows 100

Reads every layer and site of the model on training text, with BOS and without it.
"""

from __future__ import annotations

import argparse

import torch

from sae_engine.activations.outliers import median_norm
from sae_engine.activations.stream import extract
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import DataConfig, ModelConfig
from sae_engine.text.packing import Packing, training_rows

SITES = ("resid_post", "mlp_out", "attn_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-gemma2")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=400, help="rows of 256 tokens")
    options = parser.parse_args()
    configs = [
        ModelConfig(name=options.model, layer=layer, site=site)
        for layer in range(options.layers)
        for site in SITES
    ]
    model = LanguageModel.load(configs[0], also=configs[1:])
    for bos in (model.bos_id, None):
        packing = Packing(model.tokenizer, 256, bos, model.eos_id)
        ids = torch.from_numpy(training_rows(DataConfig(), packing).take(options.rows))
        print(f"{'without' if bos is None else 'with'} BOS")
        for config, x in zip(configs, extract(model, ids), strict=True):
            multiples = x.float().norm(dim=1) / median_norm(x)
            largest, over = multiples.max().item(), int((multiples > 10).sum())
            print(
                f"  layer {config.layer} {config.site:10}  {len(x):,} tokens, "
                f"largest {largest:.2f} times the median, {over} above 10 times"
            )


if __name__ == "__main__":
    main()
