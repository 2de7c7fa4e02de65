"""A run's features as static pages that open from disk, without a server or a network.

A page opened from disk cannot fetch files, but it can load scripts. So the data are scripts that
call `wb.put(name, value)`: a small list of all features, and chunks that `page/app.js` loads on
demand. Text from the corpus is written as JSON and becomes text nodes, never HTML.

Formats of the chunks (texts are indices into the chunk's `texts`):

    list             columns of all features, parallel to `index`
    examples-<n>     {feature: [tokens, [place, activation, …], peak]}
    features-<n>     {feature: {…, contexts: [context], intervals: [[low, high, share, [context]]]}}
                     context = [tokens, [place, activation, …], peak, row, position, copies]
    tokens           texts and counts of all groups of tokens that differ only in case and space
    lookup-<n>       [[[[token, count]], [[feature, count, mean, max]] highest F1 first]]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sae_engine.features.export.source import ExportSource, FeatureWriter
from sae_engine.features.index.associations import Associations
from sae_engine.schema.features import Context, FeatureDetail, TokenLogit

FEATURES_PER_CHUNK = 64
EXAMPLES_PER_CHUNK = 512
GROUPS_PER_CHUNK = 512
EXAMPLE_REACH = 8
"""Tokens on each side of the peak in the list."""
FEATURES_PER_GROUP = 30
"""Features per group of tokens in the lookup, those with the highest F1."""
DIGITS = 4
"""Significant digits; activations in float16 have no more."""


class Texts:
    """The distinct texts of one chunk."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def numbers(self, texts: Sequence[str]) -> list[int]:
        return [self.number(text) for text in texts]

    @property
    def listed(self) -> list[str]:
        return list(self._numbers)


def export_html(source: ExportSource, folder: Path) -> None:
    """Write `index.html` and everything it loads into `folder`."""
    pages = files("sae_engine.features.export") / "page"
    for name in ("index.html", "app.js", "views.js", "page.css"):
        (folder / name).write_bytes((pages / name).read_bytes())
    (folder / "style.css").write_text(source.style, "utf-8")
    data = folder / "data"
    data.mkdir()
    _write_features(source, data)
    _write_lookup(source, data)


def _put(folder: Path, name: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (folder / f"{name}.js").write_text(f'wb.put("{name}",{text});\n', "utf-8")


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _write_features(source: ExportSource, folder: Path) -> None:
    """Write the list, the examples and the feature pages in one pass over the features."""
    tokens = Texts()
    names = ("index", "fired", "max", "label", "name", "top")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    starred: list[int] = []
    examples: dict[int, Any] = {}
    example_texts = Texts()
    pages: dict[int, Any] = {}
    page_texts = Texts()
    last = len(source.chosen) - 1
    for place, feature in enumerate(source.features()):
        columns["index"].append(feature.index)
        columns["fired"].append(feature.density.fired)
        columns["max"].append(_rounded(feature.max_activation))
        columns["label"].append(feature.label or "")
        columns["name"].append(feature.name or "")
        columns["top"].append(tokens.numbers([token.text for token in feature.top_tokens]))
        if feature.starred:
            starred.append(feature.index)
        if feature.contexts:
            examples[feature.index] = _example(feature.contexts[0], example_texts)
        pages[feature.index] = _page(source, feature, page_texts)
        if place % FEATURES_PER_CHUNK == FEATURES_PER_CHUNK - 1 or place == last:
            name = f"features-{place // FEATURES_PER_CHUNK}"
            _put(folder, name, {"texts": page_texts.listed, "features": pages})
            pages, page_texts = {}, Texts()
        if place % EXAMPLES_PER_CHUNK == EXAMPLES_PER_CHUNK - 1 or place == last:
            name = f"examples-{place // EXAMPLES_PER_CHUNK}"
            _put(folder, name, {"texts": example_texts.listed, "examples": examples})
            examples, example_texts = {}, Texts()
    _put(
        folder,
        "list",
        {
            "run": source.run_name,
            "model": source.config.model.name,
            "hook": source.config.hook_name,
            "step": source.index.step,
            "trainedTokens": source.index.tokens,
            "numTokens": source.index.num_tokens,
            "numFeatures": source.index.d_sae,
            "leftOut": source.left_out,
            "featuresPerChunk": FEATURES_PER_CHUNK,
            "examplesPerChunk": EXAMPLES_PER_CHUNK,
            "groupsPerChunk": GROUPS_PER_CHUNK,
            "featuresPerGroup": FEATURES_PER_GROUP,
            "texts": tokens.listed,
            "starred": starred,
            **columns,
        },
    )


def _example(context: Context, texts: Texts) -> list[Any]:
    """The strongest example, shortened for the list."""
    start = max(0, context.peak - EXAMPLE_REACH)
    shown = slice(start, context.peak + 1 + EXAMPLE_REACH)
    return [
        texts.numbers(context.tokens[shown]),
        _active(context.activations[shown]),
        context.peak - start,
    ]


def _context(context: Context, texts: Texts) -> list[Any]:
    return [
        texts.numbers(context.tokens),
        _active(context.activations),
        context.peak,
        context.row,
        context.position,
        context.copies,
    ]


def _active(activations: Sequence[float]) -> list[float]:
    """[place, activation, …] of the active tokens."""
    return [x for place, act in enumerate(activations) if act for x in (place, _rounded(act))]


def _page(source: ExportSource, feature: FeatureDetail, texts: Texts) -> dict[str, Any]:
    """Everything about one feature that is not in the list."""
    origin = source.origin(feature.index)
    page: dict[str, Any] = {
        "histogram": feature.histogram.counts,
        "contexts": [_context(context, texts) for context in feature.contexts],
        "intervals": [
            [
                _rounded(interval.low),
                _rounded(interval.high),
                _rounded(interval.share),
                [_context(context, texts) for context in interval.contexts],
            ]
            for interval in feature.intervals
            if interval.contexts
        ],
        "tokens": [
            [
                texts.number(token.text),
                token.count,
                _rounded(token.precision),
                _rounded(token.recall),
            ]
            for token in feature.top_tokens
        ],
        "neighbours": [[near.index, _rounded(near.cosine)] for near in feature.neighbours or []],
        "notes": feature.notes,
    }
    if feature.logits:
        page["positive"] = _logits(feature.logits.positive, texts)
        page["negative"] = _logits(feature.logits.negative, texts)
    if origin and origin.score:
        page["score"] = [origin.score.precision, origin.score.recall]
        page["labeler"] = origin.model
    return page


def _logits(logits: Sequence[TokenLogit], texts: Texts) -> list[list[float]]:
    return [[texts.number(logit.text), _rounded(logit.value)] for logit in logits]


def _write_lookup(source: ExportSource, folder: Path) -> None:
    """Write the features of each group of tokens, as a lookup with `match=fold` finds them."""
    texts: list[str] = []
    counts: list[int] = []
    chunk: list[Any] = []
    for text, members, features in _groups(source):
        chunk.append([members, features])
        texts.append(text)
        counts.append(sum(count for _, count in members))
        if len(chunk) == GROUPS_PER_CHUNK:
            _put(folder, f"lookup-{(len(texts) - 1) // GROUPS_PER_CHUNK}", chunk)
            chunk = []
    if chunk:
        _put(folder, f"lookup-{(len(texts) - 1) // GROUPS_PER_CHUNK}", chunk)
    _put(folder, "tokens", {"texts": texts, "counts": counts})


def _groups(source: ExportSource) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Text, members and best features of each group of tokens that occurs."""
    index = source.index
    token_counts = index.arrays.token_counts
    groups: dict[str, list[int]] = {}
    vocabulary = index.vocabulary
    for id_ in np.flatnonzero(token_counts).tolist():
        is_space = not vocabulary.texts[id_].strip(" ▁")
        text = vocabulary.texts[id_] if is_space else vocabulary.folded[id_]
        groups.setdefault(text, []).append(id_)
    for text in sorted(groups):
        ids = sorted(groups[text], key=lambda id_: (-token_counts[id_], id_))
        members = [[vocabulary.text(id_), int(token_counts[id_])] for id_ in ids]
        found = Associations.of_tokens(index.arrays, ids)
        features = [
            [
                int(found.latents[place]),
                int(found.counts[place]),
                _rounded(found.sums[place] / found.counts[place]),
                _rounded(found.maxes[place]),
            ]
            for place in found.best("f1", 1, FEATURES_PER_GROUP)
        ]
        yield text, members, features


WRITER = FeatureWriter(export_html, bytes_per_feature=16_000, bytes_per_pair=16)
