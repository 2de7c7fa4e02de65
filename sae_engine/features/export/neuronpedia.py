"""Features with Neuronpedia's field names: as JSON lines (`jsonl`), or as a folder that Neuronpedia
imports (`neuronpedia`).

The names are those of Neuronpedia's tables Neuron, Activation and Explanation, and of its API
(hijohnnylin/neuronpedia, `apps/webapp/prisma`). The folder is laid out like the output of its
converter `convert-saedashboard-to-neuronpedia-export.py` and of SAEDashboard's
neuronpedia_export.py. Fields that the index has no data for are left out; their columns have
defaults.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from sae_engine.features.export.source import ExportSource, FeatureWriter, all_contexts, slug
from sae_engine.interop.places import transformerlens_hook
from sae_engine.schema.features import FeatureDetail, TokenLogit
from sae_engine.schema.labels import FeatureLabel

FEATURES = "features.jsonl"
FEATURES_PER_BATCH = 256


def export_jsonl(source: ExportSource, folder: Path) -> None:
    """Write `features.jsonl` into `folder`: one feature per line with its `activations` and
    `explanations`, like a response of Neuronpedia's `GET /api/feature/<model>/<source>/<index>`.
    """
    with (folder / FEATURES).open("w", encoding="utf-8") as file:
        for feature in source.features():
            line = _feature(source, feature)
            line["explanations"] = _explanations(source, feature.index)
            line["activations"] = list(_activations(source, feature))
            _write(file, line)


def export_neuronpedia(source: ExportSource, folder: Path) -> None:
    """Write into `folder` the files that Neuronpedia imports: `release`, `model`, `sourceset` and
    `source.jsonl`, and batches `features/`, `activations/` and `explanations/*.jsonl.gz`.
    """
    for name, row in _headers(source).items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            _write(file, row)
    kinds = ("features", "activations", "explanations")
    for kind in kinds:
        (folder / kind).mkdir()
    features = source.features()
    for number, start in enumerate(range(0, len(source.chosen), FEATURES_PER_BATCH)):
        size = len(source.chosen[start : start + FEATURES_PER_BATCH])
        with ExitStack() as stack:
            files = [
                stack.enter_context(
                    gzip.open(folder / kind / f"batch-{number}.jsonl.gz", "wt", encoding="utf-8")
                )
                for kind in kinds
            ]
            for _ in range(size):
                feature = next(features)
                _write(files[0], _feature(source, feature))
                for row in _activations(source, feature):
                    _write(files[1], row)
                for row in _explanations(source, feature.index):
                    _write(files[2], row)


def _write(file: TextIO, row: dict[str, Any]) -> None:
    # Not json.dump, which encodes in Python, many times slower.
    file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def _model_id(source: ExportSource) -> str:
    """Model name without its organization, as on Neuronpedia: `gemma-2-2b`."""
    return slug(Path(source.config.model.name).name)


def _set_name(source: ExportSource) -> str:
    return f"{slug(source.run_name)}-{source.run_id}"


def _source_id(source: ExportSource) -> str:
    """`<layer>-<set>`, as on Neuronpedia; the `layer` of every row."""
    layer = source.config.model.deepest_layer
    return f"{0 if layer is None else layer}-{_set_name(source)}"


def _place(source: ExportSource, index: int) -> dict[str, Any]:
    return {"modelId": _model_id(source), "layer": _source_id(source), "index": str(index)}


def _feature(source: ExportSource, feature: FeatureDetail) -> dict[str, Any]:
    """A row of the table Neuron."""
    edges = feature.histogram.edges
    logits = feature.logits
    near = feature.neighbours or []
    return {
        **_place(source, feature.index),
        "sourceSetName": _set_name(source),
        "hookName": transformerlens_hook(source.config.model) or source.config.hook_name,
        "maxActApprox": feature.max_activation,
        "frac_nonzero": feature.density.fraction,
        # Neuronpedia draws bars at values, not between edges: use the middles.
        "freq_hist_data_bar_values": [(low + high) / 2 for low, high in pairwise(edges)],
        "freq_hist_data_bar_heights": feature.histogram.counts,
        **_logit_columns("pos", logits.positive if logits else []),
        **_logit_columns("neg", logits.negative if logits else []),
        "topkCosSimIndices": [neighbour.index for neighbour in near],
        "topkCosSimValues": [neighbour.cosine for neighbour in near],
    }


def _logit_columns(sign: str, logits: Sequence[TokenLogit]) -> dict[str, Any]:
    return {f"{sign}_str": [x.text for x in logits], f"{sign}_values": [x.value for x in logits]}


def _activations(source: ExportSource, feature: FeatureDetail) -> Iterator[dict[str, Any]]:
    """Rows of the table Activation."""
    for number, (context, interval) in enumerate(all_contexts(feature)):
        values = context.activations
        largest = max(values)
        yield {
            "id": f"{source.run_id}-{source.index.step}-{feature.index}-{number}",
            **_place(source, feature.index),
            "tokens": context.tokens,
            "values": values,
            "maxValue": largest,
            "maxValueTokenIndex": values.index(largest),
            "minValue": min(values),
            "qualifyingTokenIndex": context.peak,
            "dataIndex": f"row {context.row}, position {context.position}",
            # Outside intervals, SAEDashboard writes -1.
            "binMin": interval.low if interval else -1.0,
            "binMax": interval.high if interval else feature.max_activation,
            "binContains": interval.share if interval else -1.0,
        }


def _explanations(source: ExportSource, index: int) -> list[dict[str, Any]]:
    """Rows of the table Explanation: the feature's label, if it has one."""
    written = source.labels.get(index)
    if written is None or not written.label:
        return []
    origin = written.origin
    return [
        {
            "id": f"{source.run_id}-{index}",
            **_place(source, index),
            "description": written.label,
            "typeName": origin.prompt_version,
            "explanationModelName": origin.model,
            "createdAt": origin.created_at.isoformat() if origin.created_at else None,
            "scores": _scores(written),
        }
    ]


def _scores(written: FeatureLabel) -> list[dict[str, Any]]:
    """Rows of the table ExplanationScore."""
    score = written.origin.score
    if score is None:
        return []
    return [
        {
            "value": score.balanced_accuracy,
            "explanationScoreTypeName": "detection",
            "explanationScoreModelName": written.origin.model,
            "jsonDetails": score.model_dump_json(),
        }
    ]


def _headers(source: ExportSource) -> dict[str, dict[str, Any]]:
    """The rows of Release, Model, SourceSet and Source that the features refer to."""
    model, set_name = _model_id(source), _set_name(source)
    return {
        "release": {
            "name": set_name,
            "description": source.run_name,
            "creatorName": "SAE Workbench",
            "defaultSourceSetName": set_name,
            "defaultSourceId": _source_id(source),
        },
        "model": {"id": model, "displayName": model, "displayNameShort": model},
        "sourceset": {
            "modelId": model,
            "name": set_name,
            "description": source.run_name,
            "creatorName": "SAE Workbench",
            "releaseName": set_name,
        },
        "source": {
            "id": _source_id(source),
            "modelId": model,
            "setName": set_name,
            "dataset": source.config.data.title,
            "num_prompts": source.index.manifest.num_rows,
            "num_tokens_in_prompt": source.config.data.ctx_len,
            "notes": source.left_out or None,
        },
    }


JSONL_WRITER = FeatureWriter(export_jsonl, bytes_per_feature=60_000)
NEURONPEDIA_WRITER = FeatureWriter(export_neuronpedia, bytes_per_feature=16_000)
