"""Features as Parquet tables: `features`, `contexts` and `token_statistics`.

They are written in bounded row groups, which bounds the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_engine.features.export.source import ExportSource, FeatureWriter, all_contexts
from sae_engine.features.index.associations import Associations
from sae_engine.schema.features import FeatureDetail

FEATURES_PER_GROUP = 256
PAIRS_PER_GROUP = 250_000

_LOGITS = pa.list_(pa.struct([("token", pa.string()), ("logit", pa.float32())]))
_FEATURES = pa.schema(
    [
        ("feature", pa.int32()),
        ("density", pa.float64()),
        ("fired", pa.int64()),
        ("max_activation", pa.float32()),
        ("state", pa.string()),
        ("label", pa.string()),
        ("label_author", pa.string()),
        ("label_model", pa.string()),
        ("label_precision", pa.float64()),
        ("label_recall", pa.float64()),
        ("label_balanced_accuracy", pa.float64()),
        ("notes", pa.string()),
        ("starred", pa.bool_()),
        ("top_tokens", pa.list_(pa.string())),
        ("positive_logits", _LOGITS),
        ("negative_logits", _LOGITS),
        ("neighbours", pa.list_(pa.struct([("feature", pa.int32()), ("cosine", pa.float32())]))),
        ("histogram_edges", pa.list_(pa.float64())),
        ("histogram_counts", pa.list_(pa.int64())),
    ]
)
_CONTEXTS = pa.schema(
    [
        ("feature", pa.int32()),
        ("interval_low", pa.float64()),
        ("interval_high", pa.float64()),
        ("interval_share", pa.float64()),
        ("activation", pa.float32()),
        ("tokens", pa.list_(pa.string())),
        ("activations", pa.list_(pa.float32())),
        ("peak", pa.int32()),
        ("position", pa.int32()),
        ("row", pa.int32()),
        ("copies", pa.int32()),
    ]
)
_TOKEN_STATISTICS = pa.schema(
    [
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("token_count", pa.int64()),
        ("feature", pa.int32()),
        ("count", pa.int64()),
        ("f1", pa.float64()),
        ("lift", pa.float64()),
        ("recall", pa.float64()),
        ("precision", pa.float64()),
        ("mean_activation", pa.float64()),
        ("max_activation", pa.float64()),
    ]
)


def export_parquet(
    source: ExportSource, folder: Path, *, pairs_per_group: int = PAIRS_PER_GROUP
) -> None:
    """Write `features.parquet`, `contexts.parquet` and `token_statistics.parquet` into `folder`.

    The strongest contexts have null intervals. The statistics cover all pairs of a token and a
    feature that fires on it.
    """
    with ExitStack() as stack:
        features = stack.enter_context(_writer(folder, "features", _FEATURES))
        contexts = stack.enter_context(_writer(folder, "contexts", _CONTEXTS))
        for group in _groups(source):
            rows = [_feature(source, feature) for feature in group]
            features.write_table(pa.Table.from_pylist(rows, _FEATURES))
            lines = [line for feature in group for line in _contexts(feature)]
            contexts.write_table(pa.Table.from_pylist(lines, _CONTEXTS))
    with _writer(folder, "token_statistics", _TOKEN_STATISTICS) as statistics:
        for table in _token_statistics(source, pairs_per_group):
            statistics.write_table(table)


def _writer(folder: Path, name: str, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd")


def _groups(source: ExportSource) -> Iterator[list[FeatureDetail]]:
    group: list[FeatureDetail] = []
    for feature in source.features():
        group.append(feature)
        if len(group) == FEATURES_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def _feature(source: ExportSource, feature: FeatureDetail) -> dict[str, Any]:
    origin = source.origin(feature.index)
    score = origin.score if origin else None
    logits = feature.logits
    return {
        "feature": feature.index,
        "density": feature.density.fraction,
        "fired": feature.density.fired,
        "max_activation": feature.max_activation,
        "state": feature.state,
        "label": feature.label,
        "label_author": origin and origin.author,
        "label_model": origin and origin.model,
        "label_precision": score and score.precision,
        "label_recall": score and score.recall,
        "label_balanced_accuracy": score and score.balanced_accuracy,
        "notes": feature.notes,
        "starred": feature.starred,
        "top_tokens": [token.text for token in feature.top_tokens],
        "positive_logits": logits
        and [{"token": x.text, "logit": x.value} for x in logits.positive],
        "negative_logits": logits
        and [{"token": x.text, "logit": x.value} for x in logits.negative],
        "neighbours": feature.neighbours
        and [{"feature": near.index, "cosine": near.cosine} for near in feature.neighbours],
        "histogram_edges": feature.histogram.edges,
        "histogram_counts": feature.histogram.counts,
    }


def _contexts(feature: FeatureDetail) -> Iterator[dict[str, Any]]:
    for context, interval in all_contexts(feature):
        yield {
            "feature": feature.index,
            "interval_low": interval and interval.low,
            "interval_high": interval and interval.high,
            "interval_share": interval and interval.share,
            **context.model_dump(),
        }


def _token_statistics(source: ExportSource, pairs_per_group: int) -> Iterator[pa.Table]:
    """The exact (token, latent) statistics, by token, then feature."""
    index, arrays = source.index, source.index.arrays
    for start in range(0, len(arrays.pair_latents), pairs_per_group):
        end = min(start + pairs_per_group, len(arrays.pair_latents))
        pairs = slice(start, end)
        tokens = np.searchsorted(arrays.pair_starts, np.arange(start, end), side="right") - 1
        distinct, places = np.unique(tokens, return_inverse=True)
        texts = pa.array([index.vocabulary.text(int(token)) for token in distinct])
        token_counts = arrays.token_counts[tokens]
        found = Associations.of(
            arrays,
            arrays.pair_latents[pairs],
            arrays.pair_counts[pairs],
            arrays.pair_sums[pairs],
            arrays.pair_maxes[pairs],
            group_count=token_counts,
        )
        columns = [
            tokens,
            texts.take(pa.array(places)),
            token_counts,
            found.latents,
            found.counts,
            found.f1,
            found.lift,
            found.recall,
            found.precision,
            found.sums / found.counts,
            found.maxes,
        ]
        yield pa.table(
            [
                pa.array(column).cast(kind)
                for column, kind in zip(columns, _TOKEN_STATISTICS.types, strict=True)
            ],
            schema=_TOKEN_STATISTICS,
        )


WRITER = FeatureWriter(export_parquet, bytes_per_feature=16_000, bytes_per_pair=40)
