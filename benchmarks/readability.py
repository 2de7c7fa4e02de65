"""How readable the features of a recipe are.

    python benchmarks/readability.py                                 # the presets for laptops
    python benchmarks/readability.py "tiny sae.d_sae=4096 sae.k=16"  # a preset, changed

Trains each recipe as `sae-workbench train` would, on the embedded model, and prints one line of
figures and two of the best latent's F1, for named words in their most frequent spelling and for
phrases:

- `clear`: share of latents whose best token group has F1 of at least .5 (a group is all spellings
  of a word, with and without a capital and a leading space).
- `middle`: share of latents for which at least half of the activations between a third and two
  thirds of the largest stand on one of the groups of their ten top tokens.
- `both`: share of latents with both.
- `plain`: share of live latents that one word explains as a reader would judge: 7 of the ten
  strongest activations and 60 % of those in the middle stand on it, before it or after it.
- `median`: median over the tokens seen at least 50 times of the F1 of the best latent.
- `dead`: share of latents that fire on no token of the index.
- `again`, with `--consistency`: mean over live latents of the largest cosine with a live latent of
  the same recipe under another seed, and the share above .7.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _common import again, machine, parser, unit_rows
from numpy.typing import NDArray

from sae_engine.features.index.clarity import Groups, latent_groups
from sae_engine.features.index.details import NUM_TOP_TOKENS
from sae_engine.features.index.format import SAE, open_decoder
from sae_engine.features.index.listing import top_token_ids
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.fields import nest, parse_value
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train

FREQUENT = 50
STRONGEST = 10
PLAIN_STRONGEST, PLAIN_MIDDLE = 0.7, 0.6
"""Shares of a plain latent's activations that stand on its word. A reader of 30 features of `small`
called 17 % plain, this 14 %.
"""
TOKENS = (
    *(
        "import",
        "def",
        "return",
        "self",
        "class",
        "if",
        "for",
        "not",
        "in",
        "None",
        "True",
        "raise",
    ),
    *("the", "of", "is", "to", "and", "string", "file", "name"),
)
PHRASES = (
    *("__init__", "is not None", "raise ValueError", "if not", "return self", "for i in range"),
    *("import os", "must be", "the same", "such as"),
)


def middle_precision(index: FeatureIndex, groups: Groups, tops: NDArray[np.int64]) -> Any:
    """[d_sae] share of a latent's middle activations that stand on its top groups; nan if none."""
    arrays = index.arrays
    precision = np.full(index.d_sae, np.nan)
    for latent in np.flatnonzero(arrays.fired):
        where = slice(*arrays.latent_starts[latent : latent + 2])
        acts = arrays.latent_acts[where].astype(np.float32)
        middle = (acts > acts[0] / 3) & (acts <= 2 * acts[0] / 3)
        positions = arrays.latent_positions[where][middle]
        of_top = groups.of_token[tops[latent][tops[latent] >= 0]]
        if len(positions):
            held = groups.of_token[arrays.token_ids[positions]]
            precision[latent] = np.isin(held, of_top).mean()
    return precision


def is_plain(index: FeatureIndex, groups: Groups, latent: int) -> bool:
    """Whether one word stands at the same place beside most strong and middle activations."""
    arrays = index.arrays
    where = slice(*arrays.latent_starts[latent : latent + 2])
    acts = arrays.latent_acts[where].astype(np.float32)
    positions = arrays.latent_positions[where].astype(np.int64)
    middle = positions[(acts > acts[0] / 3) & (acts <= 2 * acts[0] / 3)]
    if len(positions) < STRONGEST:
        return False
    for beside in (-1, 0, 1):
        strongest, others = (
            groups.of_token[arrays.token_ids[(some + beside).clip(0, index.num_tokens - 1)]]
            for some in (positions[:STRONGEST], middle)
        )
        words, counts = np.unique(strongest, return_counts=True)
        holds = len(others) == 0 or (others == words[counts.argmax()]).mean() >= PLAIN_MIDDLE
        if counts.max() >= PLAIN_STRONGEST * STRONGEST and holds:
            return True
    return False


def report(name: str, index: FeatureIndex, last: dict[str, float], taken: float) -> None:
    arrays = index.arrays
    tops = top_token_ids(arrays, NUM_TOP_TOKENS)
    groups = Groups(arrays, index.vocabulary)
    latents, chosen, together = latent_groups(arrays, groups, np.arange(index.d_sae), tops)
    f1 = np.zeros(index.d_sae)
    scores = 2 * together / (groups.counts[chosen] + arrays.fired[latents])
    np.maximum.at(f1, latents, scores)
    middle = middle_precision(index, groups, tops) >= 0.5
    plain = [is_plain(index, groups, n) for n in np.flatnonzero(arrays.fired).tolist()]
    frequent = np.flatnonzero(arrays.token_counts >= FREQUENT).tolist()
    best = [
        max((m.f1 for m in lookup(index, t, "exact")), default=0) for t in texts(index, frequent)
    ]
    print(
        f"{name}: clear {(f1 >= 0.5).mean():.0%}, middle {middle.mean():.0%}, "
        f"both {((f1 >= 0.5) & middle).mean():.0%}, plain {np.mean(plain):.0%}, "
        f"median {np.median(best):.2f} of {len(best)} "
        f"tokens, dead {(arrays.fired == 0).mean():.0%}, "
        + ", ".join(f"{key} {value:.3f}" for key, value in last.items())
        + f", {taken:.0f} s"
    )
    spelled = [(token, most_frequent_spelling(index, token)) for token in TOKENS]
    for kind in (spelled, [(phrase, phrase) for phrase in PHRASES]):
        values = [max((m.f1 for m in lookup(index, t, "exact")), default=0) for _, t in kind]
        named = zip(kind, values, strict=True)
        print("  " + ", ".join(f"{name} {f1:.2f}" for (name, _), f1 in named), flush=True)


def most_frequent_spelling(index: FeatureIndex, word: str) -> str:
    """`import` at the start of a line and ` import` in one are different tokens."""
    spellings = [i for i, text in enumerate(index.vocabulary.folded) if text == word.casefold()]
    most = max(spellings, key=lambda i: index.arrays.token_counts[i], default=None)
    return word if most is None else index.vocabulary.text(most)


def texts(index: FeatureIndex, ids: list[int]) -> list[str]:
    return [index.vocabulary.texts[i] for i in ids]


def lookup(index: FeatureIndex, text: str, match: Any) -> Any:
    return index.lookup(text, match=match, limit=1).features


def live_directions(index: FeatureIndex) -> NDArray[np.float32]:
    """[live latents, d_in] unit decoder rows."""
    return unit_rows(open_decoder(index.folder / SAE)[:][index.arrays.fired > 0])


def trained(recipe: str, folder: Path, seed: int) -> tuple[FeatureIndex, dict[str, float], float]:
    """The final index of a run, its last metrics and the CPU seconds it took."""
    preset, *changes = recipe.split()
    values = {path: parse_value(path, text) for path, text in (c.split("=") for c in changes)}
    config = resolve_config(preset, nest({"seed": seed, **values}))
    began = time.process_time()
    last: dict[str, float] = {}
    for record in train(config, RunFolder(folder)):
        if isinstance(record, MetricsRecord):
            last |= {k: v for k, v in record.values.items() if k in ("eval_fvu", "ce_delta")}
    taken = time.process_time() - began
    newest = max(RunFolder(folder).snapshots())
    return FeatureIndex.open(RunFolder(folder).feature_index(newest)), last, taken


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("recipes", nargs="*", default=["quick-test", "tiny"])
    arguments.add_argument("--consistency", action="store_true", help="train a second seed")
    chosen = arguments.parse_args()
    print(machine())
    for recipe in chosen.recipes:
        with TemporaryDirectory() as folder:
            first = trained(recipe, Path(folder) / "0", seed=0)
            report(recipe, *first)
            if chosen.consistency:
                other, _, _ = trained(recipe, Path(folder) / "1", seed=1)
                print(f"  {again(live_directions(first[0]), live_directions(other))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
