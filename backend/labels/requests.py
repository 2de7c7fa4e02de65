"""From a `LabelRequest` to features, a cost estimate and the endpoint's client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice

import numpy as np
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.labels.chat import ChatClient
from backend.settings import Settings
from backend.store.labels import written_labels
from backend.store.models import LabelJobRow
from sae_engine.features.index.contexts import evenly_spaced
from sae_engine.features.index.listing import ordered
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.features.labels.examples import examples_of
from sae_engine.features.labels.questions import Messages, detect_questions, explain_question
from sae_engine.schema.labels import FeatureLabel, LabelEstimate, LabelJob, LabelRequest

CHARACTERS_PER_TOKEN = 3.0
"""For source code, with the tokenizers of 2025; prose has more."""
LABEL_TOKENS = 40
JUDGMENT_TOKENS = 40
SAMPLED_FEATURES = 8
"""Features whose questions are measured for an estimate."""


def labeling_model(settings: Settings) -> str:
    """The configured model; raises `ConflictError` if none is configured."""
    if settings.labels_base_url is None or settings.labels_model is None:
        raise ConflictError(
            "No language model is configured for labels: set SAE_WORKBENCH_LABELS_BASE_URL to an "
            "OpenAI-compatible endpoint and SAE_WORKBENCH_LABELS_MODEL to one of its models, and "
            "restart the server.",
            kind="labels-not-configured",
        )
    return settings.labels_model


def chat_client(settings: Settings) -> ChatClient:
    """A client of the configured endpoint."""
    key = settings.labels_api_key
    return ChatClient(
        settings.labels_base_url or "",
        labeling_model(settings),
        None if key is None else key.get_secret_value(),
    )


def features_to_label(
    session: Session, run_id: str, index: FeatureIndex, request: LabelRequest
) -> list[int]:
    """The requested features that a model may label, in the order in which it will.

    All of `request.features` must exist.
    """
    written = written_labels(session, run_id)
    if request.features is None:
        return _first(index, request, written)
    return [
        feature
        for feature in dict.fromkeys(request.features)
        if index.fired[feature] and _is_open(feature, request, written)
    ]


def _first(
    index: FeatureIndex, request: LabelRequest, written: Mapping[int, FeatureLabel]
) -> list[int]:
    """The first `limit` features of the list that fire and may be labeled."""
    alive = np.flatnonzero(index.fired)
    order = "asc" if request.sort in ("index", "label") else "desc"
    listed = ordered(
        alive,
        request.sort,
        order,
        arrays=index.arrays,
        labels={feature: known.label for feature, known in written.items()},
        stars=[feature for feature, known in written.items() if known.starred],
        clarity=index.clarity,
    )
    may = (feature for feature in listed.tolist() if _is_open(feature, request, written))
    return list(islice(may, request.limit))


def _is_open(feature: int, request: LabelRequest, written: Mapping[int, FeatureLabel]) -> bool:
    """Whether a model may label this feature; a person's label is never replaced."""
    known = written.get(feature)
    if known is None or not known.label:
        return True
    return request.relabel and known.origin.author == "model"


def estimate(settings: Settings, index: FeatureIndex, features: list[int]) -> LabelEstimate:
    """Calls, tokens and cost of labeling these features, extrapolated from a sample of them."""
    model = labeling_model(settings)
    sampled = [features[place] for place in evenly_spaced(len(features), SAMPLED_FEATURES)]
    calls = characters = 0
    for feature in sampled:
        examples = examples_of(index, feature)
        questions = [explain_question(examples)]
        if examples.held_out and examples.held_out_silent:
            label = "x" * 60
            questions += [asked for asked, _ in detect_questions(label, examples, seed=feature)]
        calls += len(questions)
        characters += sum(map(_characters, questions))
    scale = len(features) / len(sampled) if sampled else 0.0
    calls = math.ceil(calls * scale)
    prompt_tokens = math.ceil(characters * scale / CHARACTERS_PER_TOKEN)
    completion_tokens = len(features) * LABEL_TOKENS + (calls - len(features)) * JUDGMENT_TOKENS
    return LabelEstimate(
        model=model,
        features=len(features),
        calls=calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=cost(settings, prompt_tokens, completion_tokens),
    )


def _characters(question: Messages) -> int:
    return sum(len(message["content"]) for message in question)


def cost(settings: Settings, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Cost at the configured prices; None unless both prices are configured."""
    if settings.labels_input_price is None or settings.labels_output_price is None:
        return None
    paid = prompt_tokens * settings.labels_input_price
    return (paid + completion_tokens * settings.labels_output_price) / 1e6


def job_shape(settings: Settings, row: LabelJobRow) -> LabelJob:
    return LabelJob.model_validate(
        {
            **{name: getattr(row, name) for name in LabelJob.model_fields if name != "cost"},
            "cost": cost(settings, row.prompt_tokens, row.completion_tokens),
        }
    )
