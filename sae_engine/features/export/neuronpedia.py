"""Features in the field names of Neuronpedia: to be read (`jsonl`), or imported there
(`neuronpedia`).

The names are those of its tables Neuron, Activation and Explanation, in which its API answers too
(hijohnnylin/neuronpedia, `apps/webapp/prisma`). The folders are those that its converter
`convert-saedashboard-to-neuronpedia-export.py`, and `neuronpedia_export.py` of SAEDashboard, make
of SAEDashboard's output. Fields that the index knows nothing about are left out; their columns have
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

from sae_engine.features.export.source import ExportSource, slug
from sae_engine.interop.export import transformerlens_hook
from sae_engine.schema.features import Context, FeatureDetail, TokenLogit
from sae_engine.schema.labels import FeatureLabel

FEATURES = "features.jsonl"
FEATURES_PER_BATCH = 256
TOP = {"binMin": -1.0, "binContains": -1.0}
"""What SAEDashboard writes for contexts of no interval."""


def export_jsonl(source: ExportSource, folder: Path) -> None:
    """Write `features.jsonl` into `folder`: per line a feature with its `activations` and
    `explanations`, as Neuronpedia's `GET /api/feature/<model>/<source>/<index>` answers.
    """
    with (folder / FEATURES).open("w", encoding="utf-8") as file:
        for feature in source.features():
            line = _feature(source, feature)
            line["explanations"] = _explanations(source, feature.index)
            line["activations"] = list(_activations(source, feature))
            _write(file, line)


def export_neuronpedia(source: ExportSource, folder: Path) -> None:
    """Write into `folder` what Neuronpedia imports: `release`, `model`, `sourceset` and
    `source.jsonl`, and in batches `features/`, `activations/` and `explanations/*.jsonl.gz`.
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
    # In one piece: json.dump encodes in Python, many times slower.
    file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def _model_id(source: ExportSource) -> str:
    """Neuronpedia's names of models have no organization: `gemma-2-2b`."""
    return slug(Path(source.config.model.name).name)


def _set_name(source: ExportSource) -> str:
    return f"{slug(source.run_name)}-{source.run_id}"


def _source_id(source: ExportSource) -> str:
    """`<layer>-<set>`, as Neuronpedia builds them; it is the `layer` of every row."""
    layer = source.config.model.deepest_layer
    return f"{0 if layer is None else layer}-{_set_name(source)}"


def _place(source: ExportSource, index: int) -> dict[str, Any]:
    return {"modelId": _model_id(source), "layer": _source_id(source), "index": str(index)}


def _feature(source: ExportSource, feature: FeatureDetail) -> dict[str, Any]:
    """A row of Neuron."""
    edges = feature.histogram.edges
    logits = feature.logits
    near = feature.neighbours or []
    return {
        **_place(source, feature.index),
        "sourceSetName": _set_name(source),
        "hookName": transformerlens_hook(source.config.model) or source.config.hook_name,
        "maxActApprox": feature.max_activation,
        "frac_nonzero": feature.density.fraction,
        # Neuronpedia draws bars at single values: the middles of ours.
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
    """Rows of Activation: the strongest contexts, then those of each interval."""
    place = _place(source, feature.index)
    top = TOP | {"binMax": feature.max_activation}
    groups: list[tuple[Sequence[Context], dict[str, float]]] = [(feature.contexts, top)]
    for interval in feature.intervals:
        bounds = {"binMin": interval.low, "binMax": interval.high, "binContains": interval.share}
        groups.append((interval.contexts, bounds))
    number = 0
    for contexts, bounds in groups:
        for context in contexts:
            values = context.activations
            largest = max(values)
            yield {
                "id": f"{source.run_id}-{source.index.step}-{feature.index}-{number}",
                **place,
                "tokens": context.tokens,
                "values": values,
                "maxValue": largest,
                "maxValueTokenIndex": values.index(largest),
                "minValue": min(values),
                "qualifyingTokenIndex": context.peak,
                "dataIndex": f"row {context.row}, position {context.position}",
                **bounds,
            }
            number += 1


def _explanations(source: ExportSource, index: int) -> list[dict[str, Any]]:
    """Rows of Explanation: the feature's label, if it has one."""
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
    """Rows of ExplanationScore."""
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
    """The rows of Release, Model, SourceSet and Source that the features hang on."""
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
            "dataset": source.config.data.dataset,
            "num_prompts": source.index.manifest.num_rows,
            "num_tokens_in_prompt": source.config.data.ctx_len,
            "notes": source.left_out or None,
        },
    }
