"""Effect of the order of the text, and of `data.shuffle_tokens`, on the SAE.

    python benchmarks/shuffle.py                              # the table in LOG.md
    python benchmarks/shuffle.py --orders sorted --shuffle-tokens 262144

Trains the preset `tiny` on the same 540,000 tokens of the standard library twice: files sorted by
name, so that each package is one stretch, and documents in random order. Prints one line per order
and shuffle: held-out FVU, share of latents alive, seconds of training. `global` shuffles all
activations, which needs all of them in memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _common import machine, parser
from torch import Tensor

from sae_engine.activations.feed import TextFeed
from sae_engine.activations.stream import ActivationStream
from sae_engine.presets import resolve_config
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import RunConfig
from sae_engine.text.packing import Cursor
from sae_engine.text.stdlib import SourceText, is_heldout, named_documents
from sae_engine.training.evaluate import reconstruction_metrics

TOKENS = 540_000
CHARS = 2_200_000
"""Text written, of which a tenth is held out as in any other dataset."""
HELDOUT_TOKENS = 50_000
GLOBAL = "global"


def write_corpora(folder: Path) -> None:
    """The same documents as `sorted.jsonl` and `random.jsonl`."""
    chosen: list[SourceText] = []
    for document in named_documents():  # in the order of a hash
        if sum(len(d.text) for d in chosen) < CHARS and not is_heldout(document.name):
            chosen.append(document)
    by_name = sorted(chosen, key=lambda document: document.name)
    for name, ordered in (("sorted", by_name), ("random", chosen)):
        lines = [json.dumps({"text": document.text}) for document in ordered]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def batches(feed: TextFeed, batch: int, shuffle: str) -> Iterator[Tensor]:
    if shuffle != GLOBAL:
        stream = ActivationStream(feed.open_source, batch_size=batch, seed=0)
        return (values for (values,) in stream)
    source, parts = feed.open_source(Cursor()), []
    while sum(map(len, parts)) < TOKENS:
        parts += source.next_block()
    values = torch.cat(parts)[:TOKENS]
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    return iter(values[order].split(batch))


def train_once(config: RunConfig, shuffle: str, heldout: Tensor) -> str:
    feed = TextFeed([config])
    batch, steps = config.train.batch_size_tokens, TOKENS // config.train.batch_size_tokens
    feeding = batches(feed, batch, shuffle)
    sae = TopKSAE(heldout.shape[1], config.sae.num_latents(heldout.shape[1]), config.sae.k)
    trainer = SAETrainer(sae, config.sae, config.train, Budget(steps, steps * batch))
    began = time.perf_counter()
    first = [next(feeding) for _ in range(16_384 // batch)]
    trainer.fit_input_(torch.cat(first), seed=0)
    for step in range(steps):
        trainer.step(first[step] if step < len(first) else next(feeding))
    taken = time.perf_counter() - began
    found = reconstruction_metrics(sae.folded(trainer.scale), heldout)
    return f"FVU {found['eval_fvu']:.4f}  alive {found['frac_alive']:.3f}  {taken:.0f} s"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--orders", nargs="*", default=["sorted", "random"])
    arguments.add_argument(
        "--shuffle-tokens", nargs="*", default=["32768", "262144", "1048576", GLOBAL]
    )
    options = arguments.parse_args()
    print(machine())
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_corpora(folder)
        embedded = TextFeed([resolve_config("tiny", {})])
        held = embedded.open_heldout(HELDOUT_TOKENS, folder / "heldout")
        heldout = held.read(0, HELDOUT_TOKENS).clone()
        for order in options.orders:
            for shuffle in options.shuffle_tokens:
                tokens = 1 if shuffle == GLOBAL else int(shuffle)
                data = {"dataset": str(folder / f"{order}.jsonl"), "shuffle_tokens": tokens}
                config = resolve_config("tiny", {"data": data})
                found = train_once(config, shuffle, heldout)
                print(f"{order:8s}{shuffle:>9s}  {found}", flush=True)


if __name__ == "__main__":
    main()
