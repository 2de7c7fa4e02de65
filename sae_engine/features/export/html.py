"""A run's features as static pages, which open from a disk without server and network.

A page opened from a disk may not fetch files, but may run scripts. So the data are scripts that
call `wb.put(name, value)`: a small list of all features, and chunks that `page/app.js` loads as
they are needed. Whatever the corpus holds travels as JSON and becomes text nodes, never HTML.

The shapes of the chunks, in the order of their arrays (texts are numbers into the chunk's `texts`):

    list             columns of all features, each in the order of `index`
    examples-<n>     {feature: [tokens, [place, activation, …], peak]}
    features-<n>     {feature: {…, contexts: [context], intervals: [[low, high, share, [context]]]}}
                     context = [tokens, [place, activation, …], peak, row, position, copies]
    tokens           texts and counts of all groups of tokens that differ in case and space only
    lookup-<n>       [[members [text, count], [feature, positions, mean, max] best F1 first]]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sae_engine.features.export.source import ExportSource
from sae_engine.features.index.lookup import statistics_of_tokens
from sae_engine.schema.features import Context, FeatureDetail, TokenLogit

FEATURES_PER_CHUNK = 64
EXAMPLES_PER_CHUNK = 512
GROUPS_PER_CHUNK = 512
EXAMPLE_REACH = 8
"""Tokens on either side of the peak in the list."""
FEATURES_PER_GROUP = 30
"""Features that a lookup knows of each group of tokens, the best by F1."""
DIGITS = 4
"""Significant ones of what is shown; activations themselves have no more."""


class Texts:
    """Texts of one chunk, each stored once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def numbers(self, texts: Sequence[str]) -> list[int]:
        return [self.number(text) for text in texts]

    @property
    def listed(self) -> list[str]:
        return list(self._numbers)


def export_html(source: ExportSource, folder: Path, *, style: str) -> None:
    """Write `index.html` and what it needs into `folder`; `style` is the style sheet of the pages.

    A lookup in the result knows the `FEATURES_PER_GROUP` best features of each token by F1.
    """
    pages = files("sae_engine.features.export") / "page"
    for name in ("index.html", "app.js", "views.js", "page.css"):
        (folder / name).write_bytes((pages / name).read_bytes())
    (folder / "style.css").write_text(style, "utf-8")
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
    """Write the list, the examples and the pages of the features, in one pass over them."""
    tokens = Texts()
    columns: dict[str, list[Any]] = {name: [] for name in ("index", "fired", "max", "label", "top")}
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
    """A glimpse of a feature for the list."""
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
    """Place and activation of each active token, one after the other."""
    return [x for place, act in enumerate(activations) if act for x in (place, _rounded(act))]


def _page(source: ExportSource, feature: FeatureDetail, texts: Texts) -> dict[str, Any]:
    """Everything about one feature that the list does not hold."""
    written = source.labels.get(feature.index)
    score = written.origin.score if written and written.label else None
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
    if score is not None and written is not None:
        page["score"] = [score.precision, score.recall, score.balanced_accuracy]
        page["labeler"] = written.origin.model
    return page


def _logits(logits: Sequence[TokenLogit], texts: Texts) -> list[list[float]]:
    return [[texts.number(logit.text), _rounded(logit.value)] for logit in logits]


def _write_lookup(source: ExportSource, folder: Path) -> None:
    """Write which features go with each group of tokens, as `match=fold` would find them."""
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
    """Each group of tokens that occurs: its text, its members and its best features."""
    index = source.index
    token_counts = np.diff(index.arrays.token_starts)
    groups: dict[str, list[int]] = {}
    vocabulary = index.vocabulary
    for id_ in np.flatnonzero(token_counts).tolist():
        is_space = not vocabulary.texts[id_].strip(" ▁")
        text = vocabulary.texts[id_] if is_space else vocabulary.folded[id_]
        groups.setdefault(text, []).append(id_)
    for text in sorted(groups):
        ids = sorted(groups[text], key=lambda id_: (-token_counts[id_], id_))
        members = [[vocabulary.text(id_), int(token_counts[id_])] for id_ in ids]
        found = statistics_of_tokens(index.arrays, ids)
        best = (
            found.at(place) | {"index": int(found.latents[place])}
            for place in found.best("f1", 1, FEATURES_PER_GROUP)
        )
        features = [
            [f["index"], f["count"], _rounded(f["mean_activation"]), _rounded(f["max_activation"])]
            for f in best
        ]
        yield text, members, features
