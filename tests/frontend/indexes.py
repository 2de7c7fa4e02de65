"""Real feature indexes of a made-up corpus, whose every number has a closed form.

The first four of `TOKENS` occur 420 times, the others 416 times. Feature i fires on `fired(i)`
positions of `TOKENS[i % 24]` and nowhere else, with activations that fall evenly from
`strongest(i)` to almost 0; every fiftieth feature is dead. The three strongest contexts are the
same text, so they are folded into one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.functional import normalize

from backend.analyses.client import Analysis, Source
from sae_engine.features.geometry.files import Layout, Matches
from sae_engine.features.geometry.matches import match_decoders
from sae_engine.features.index.format import SAE
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from tests.frontend.samples import NASTY
from tests.sae_engine.features.index_reference import Case, build

TOKENS = [
    "import", " import", " os", "\n", f" {NASTY}", " sys", " def", " __init__", "(", " self", ",",
    " *", " args", ")", ":", " return", ".", " value", " raise", " ValueError", " $x$", " *bold*",
    " :smile:", " [a](b)",
]  # fmt: skip
UNSEEN = " zzz"
"""A token of the vocabulary that does not occur in the corpus."""
D_SAE, D_IN = 512, 64
NUM_ROWS, ROW_TOKENS, COPIES = 100, 100, 3
NUM_TOKENS = NUM_ROWS * ROW_TOKENS
FINAL_STEP = 489
STEPS = (100, 200, 300, 400, FINAL_STEP)
BATCH_TOKENS = 1024


def fired(index: int) -> int:
    """Positions on which a feature fires."""
    return 0 if index % 50 == 49 else 30 + index // 2


def strongest(index: int) -> float:
    """The largest activation of a feature that fires."""
    return 1 + (index % 37) / 5


def matched_cosine(index: int) -> float:
    """Cosine between decoder row `index` of A and row `index` + 1 of B, its nearest."""
    return 1 - (index + 0.5) / 1000


def build_indexes(folder: Path) -> None:
    """Publish run folders `a`, with a snapshot at each of `STEPS`, and `b`, with one at 100."""
    vocabulary = [*TOKENS, UNSEEN, "<unk>"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    case = _case()
    rows_a, rows_b = _decoders()
    unembed = torch.randn(len(vocabulary), D_IN, generator=torch.Generator().manual_seed(2))
    for name, steps, rows in (("a", STEPS, rows_a), ("b", STEPS[:1], rows_b)):
        for step in steps:
            build(
                folder / name,
                case,
                step=step,
                tokens=step * BATCH_TOKENS,
                tokenizer=tokenizer,
                W_dec=rows,
                unembed=unembed,
                write_sae=lambda path, rows=rows: save_file({"W_dec": rows}, path),
                final=step == FINAL_STEP,
            )


def publish_analyses(folder: Path, indexes: Path) -> None:
    """Publish maps of the run `finished` at steps 200 and 489, and the matches of its newest
    snapshot with the index `b`, as the runs `failed` and `live` have it.
    """
    for step in (200, FINAL_STEP):
        source = _source("finished", indexes / "a", step)
        latents = np.flatnonzero(source.features.fired).astype(np.uint32)
        points = np.stack([np.cos(latents), np.sin(latents)], axis=1).astype(np.float32)
        clusters = (np.arange(len(latents)) % 2).astype(np.int32)
        _save(folder, Analysis("map", (source,)), Layout(latents, points, clusters))
    newest = _source("finished", indexes / "a", FINAL_STEP)
    for run_id in ("failed", "live"):
        other = _source(run_id, indexes / "b", STEPS[0])
        first, second = sorted([newest, other], key=lambda source: source.name)
        matches = match_decoders(first.features.folder / SAE, second.features.folder / SAE)
        _save(folder, Analysis("matches", (first, second)), matches)


def _source(run_id: str, run_folder: Path, step: int) -> Source:
    return Source(run_id, FeatureIndex.open(RunFolder(run_folder).feature_index(step)))


def _save(folder: Path, analysis: Analysis, result: Layout | Matches) -> None:
    target = folder / analysis.name
    target.mkdir(parents=True)
    result.save(target)


def _case() -> Case:
    """Rows go through `TOKENS` in order in the first three rows, and shuffled in the others."""
    random = np.random.default_rng(0)
    cycle = np.arange(ROW_TOKENS) % len(TOKENS)
    rest = np.arange(NUM_TOKENS - COPIES * ROW_TOKENS) % len(TOKENS)
    token_ids = np.concatenate([np.tile(cycle, COPIES), random.permutation(rest)])
    codes: list[dict[int, float]] = [{} for _ in range(NUM_TOKENS)]
    for latent in range(D_SAE):
        number = fired(latent)
        lap, token = divmod(latent, len(TOKENS))
        folded = token + len(TOKENS) * (lap % 4) + ROW_TOKENS * np.arange(COPIES)
        elsewhere = np.flatnonzero(token_ids == token)
        elsewhere = elsewhere[elsewhere >= COPIES * ROW_TOKENS]
        others = random.choice(elsewhere, max(0, number - COPIES), replace=False)
        for rank, position in enumerate([*folded, *others][:number]):
            codes[position][latent] = strongest(latent) * (number - rank) / number
    width = max(map(len, codes))
    indices, acts = np.zeros((NUM_TOKENS, width), np.int64), np.zeros((NUM_TOKENS, width))
    for position, code in enumerate(codes):
        indices[position, : len(code)] = list(code)
        acts[position, : len(code)] = list(code.values())
    starts = np.arange(NUM_ROWS + 1) * ROW_TOKENS
    return Case(token_ids.astype(np.uint32), starts, indices, acts.astype(np.float32), D_SAE)


def _decoders() -> tuple[Tensor, Tensor]:
    """Unit rows of A, and of B: each is a row of A, turned by the angle of `matched_cosine`."""
    generator = torch.Generator().manual_seed(1)
    a, other = (normalize(torch.randn(D_SAE, D_IN, generator=generator)) for _ in range(2))
    across = normalize(other - (other * a).sum(dim=1, keepdim=True) * a)
    cosines = torch.tensor([matched_cosine(i) for i in range(D_SAE)])[:, None]
    return a, (cosines * a + (1 - cosines**2).sqrt() * across).roll(1, dims=0)
