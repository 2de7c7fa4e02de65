"""Speed of building a feature index and of its queries, on synthetic power-law latents and tokens.

    python benchmarks/feature_index.py [--latents 16384] [--tokens 200000] [--k 64] [--vocab 32768]
    python benchmarks/feature_index.py --latents 131072 --tokens 10000000 --k 32   # 12 GB of disk
    python benchmarks/feature_index.py --tokens 10000000 --k 32 --only lookup --cold 0

Prints the rate of the build without the encoder's time, the size of the index, the peak of
anonymous memory, and a table of latencies in milliseconds. Queries of one kind ask for different
features and tokens. Warm queries find the index open and its files in the page cache. Before a cold
query, the files are dropped from the cache, and its time includes opening the index (but not
reading the vocabulary, which indexes share). The vocabulary is words of a Zipf-like corpus, half of
them with a leading space, so that text stands across tokens.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _common import MemoryWatch, machine, parser, seconds
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from sae_engine.features.index.build import IndexCorpus, build_index
from sae_engine.features.index.codes import CorpusEncoder
from sae_engine.features.index.corpus_text import CorpusText
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder

ROW_TOKENS = 1024
REPEATS, COLD_REPEATS = 50, 10

Ask = Callable[[FeatureIndex, int], object]


def power_law(rng: np.random.Generator, count: int, size: tuple[int, ...]) -> np.ndarray:
    """Random numbers below `count`, where i has a probability proportional to 1 / (i + 3)."""
    shares = np.cumsum(1 / (np.arange(count) + 3))
    return np.searchsorted(shares / shares[-1], rng.random(size)).clip(max=count - 1)


def word(number: int) -> str:
    """The piece of a token: its number, with a leading space if it is even."""
    return ("" if number % 2 else "\u2581") + f"w{number}"


class SyntheticEncoder:
    """Codes, half determined by the token and half random; measures its own time."""

    def __init__(self, token_ids: np.ndarray, k: int, d_sae: int) -> None:
        self._token_ids, self._k, self._d_sae = token_ids, k, d_sae
        self.seconds = 0.0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        positions = x[:, 0].long().numpy()
        rng = np.random.default_rng(int(positions[0]))
        indices = power_law(rng, self._d_sae, (len(x), self._k))
        half = np.arange(self._k // 2)
        indices[:, half] = (self._token_ids[positions, None] * 7919 + half * 104_729) % self._d_sae
        indices.sort(axis=1)
        acts = rng.gamma(2.0, 1.0, indices.shape).astype(np.float32)
        # A latent occurs in a code once, so repeated draws are not active.
        acts[:, 1:][indices[:, 1:] == indices[:, :-1]] = 0
        self.seconds += time.perf_counter() - began
        return torch.from_numpy(acts), torch.from_numpy(indices)


def build(folder: Path, d_sae: int, num_tokens: int, k: int, vocab: int) -> None:
    """Build an index and print the rate."""
    rng = np.random.default_rng(0)
    token_ids = power_law(rng, vocab, (num_tokens,)).astype(np.uint32)
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(vocab)}, unk_token=word(0)))
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    encoder = SyntheticEncoder(token_ids.astype(np.int64), k, d_sae)
    # Positions serve as activations; float32 represents integers exactly up to 2**24.
    assert num_tokens <= 2**24, "at most 16,777,216 tokens"
    activations = torch.arange(num_tokens, dtype=torch.float32)[:, None]
    row_starts = np.append(np.arange(0, num_tokens, ROW_TOKENS), num_tokens)
    run = RunFolder(folder)
    began = time.perf_counter()
    with (
        MemoryWatch() as memory,
        CorpusEncoder(
            run.index_codes, encoder, d_sae=d_sae, k=k, device=activations.device
        ) as codes,
    ):
        codes.add(activations)
        build_index(
            run,
            step=0,
            tokens=0,
            corpus=IndexCorpus(codes.finish(), token_ids, row_starts),
            W_dec=torch.zeros(d_sae, 1),
            tokenizer=tokenizer,
            vocab_size=vocab,
            write_sae=Path.touch,
        )
    taken = time.perf_counter() - began - encoder.seconds
    path = run.feature_index(0)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(
        f"build: {taken:.1f} s without the encoder, {num_tokens / taken:,.0f} tokens/s, "
        f"{num_tokens * k / taken / 1e6:.1f} M activations/s, {size / 2**20:,.0f} MiB on disk, "
        f"{memory.peak_bytes / 2**20:,.0f} MiB of memory"
    )


def queries(index: FeatureIndex) -> Iterator[tuple[str, Ask]]:
    """Kinds of queries: a name, and a function of the index and the number of the repetition."""
    by_density = [row.index for row in index.features(limit=REPEATS).items]
    rare = [row.index for row in index.features(order="asc", min_density=1e-9, limit=REPEATS).items]
    yield "open", lambda index, _: FeatureIndex.open(index.folder)
    yield "list, a page of 50", lambda index, i: index.features(limit=50, min_density=i / 1e9)
    yield "list, searched", lambda index, i: index.features(q=f"w{i + 10}", limit=50)
    yield "feature, dense", lambda index, i: index.feature(by_density[i % len(by_density)])
    yield "feature, rare", lambda index, i: index.feature(rare[i % len(rare)])
    yield "lookup, most common token", lambda index, _: index.lookup("w0")
    yield "lookup, common token", lambda index, i: index.lookup(f"w{i + 1}")
    yield "lookup, rare token", lambda index, i: index.lookup(f"w{i + 2000}", min_count=1)
    yield (
        "lookup, prefix of many tokens",
        lambda index, i: index.lookup(f"w{i % 9 + 1}", match="prefix"),
    )
    yield "lookup, text, common", lambda index, i: index.lookup(f"w{2 * i + 1} w")
    yield "lookup, text, rare", lambda index, i: index.lookup(f"w{i + 900}w{2 * i + 1}")
    yield "lookup, text, absent", lambda index, i: index.lookup(f"w{i} zebra")
    yield (
        "lookup, text, rare, exact case",
        lambda index, i: index.lookup(f"w{i + 900}w{2 * i + 1}", match="exact"),
    )
    yield (
        "lookup, expression, simple",
        lambda index, i: index.lookup(f"w{i + 100}w[0-9]", match="regex"),
    )
    yield (
        "lookup, expression, complex",
        lambda index, i: index.lookup(rf"(w\d{{3}}|w{i}\d) w[1-9]*{i % 10}\b", match="regex"),
    )


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, in all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def drop_from_page_cache(folder: Path) -> None:
    """Drop the folder's files, which no process may have mapped, from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--latents", type=int, default=16_384)
    arguments.add_argument("--tokens", type=int, default=200_000)
    arguments.add_argument("--k", type=int, default=64)
    arguments.add_argument("--vocab", type=int, default=32_768)
    arguments.add_argument("--only", default="", help="only queries that begin so")
    arguments.add_argument(
        "--cpu", action="store_true", help="measure processor time, for a machine that is shared"
    )
    arguments.add_argument("--best", type=int, default=1, help="ask so often, keep the fastest")
    arguments.add_argument("--folder", type=Path, help="build there, or measure what is there")
    arguments.add_argument("--cold", type=int, default=COLD_REPEATS, help="number of cold queries")
    options = arguments.parse_args()

    print(f"{machine()}, numpy {np.__version__}")
    print(f"{options.latents:,} latents, {options.tokens:,} tokens, k {options.k}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "features").exists():
            build(folder, options.latents, options.tokens, options.k, options.vocab)
        index = FeatureIndex.open(RunFolder(folder).feature_index(0))
        clocked = processor_seconds if options.cpu else seconds
        decoding = clocked(partial(CorpusText.of, index.arrays, index.special_ids))
        print(f"decoding the text for its first lookup: {decoding:.2f} s")
        print(f"{'milliseconds':32}{'p50':>10}{'p95':>10}{'cold p50':>10}{'cold p95':>10}")
        asked = [query for query in queries(index) if query[0].startswith(options.only)]
        warm = {
            name: [
                1000 * min(clocked(partial(ask, index, i)) for _ in range(options.best))
                for i in range(REPEATS)
            ]
            for name, ask in asked
        }
        path = index.folder
        del index
        for name, ask in asked:
            cold: list[float] = []
            for i in range(options.cold):
                gc.collect()
                drop_from_page_cache(path)
                cold.append(1000 * seconds(lambda i=i, ask=ask: ask(FeatureIndex.open(path), i)))
            figures = np.percentile(warm[name], [50, 95]).tolist()
            figures += np.percentile(cold, [50, 95]).tolist() if cold else []
            print(f"{name:32}" + "".join(f"{figure:10.2f}" for figure in figures))


if __name__ == "__main__":
    main()
