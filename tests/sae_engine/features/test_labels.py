"""Examples, questions, answers and scores of automatic labels."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.features.labels.examples import (
    PER_INTERVAL,
    SILENT,
    TOP,
    WINDOW,
    Examples,
    examples_of,
)
from sae_engine.features.labels.questions import (
    detect_questions,
    detection_score,
    explain_question,
    read_judgments,
    read_label,
)
from sae_engine.schema.features import Context
from tests.sae_engine.features.index_reference import Case, built, case_of_rows, random_case


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureIndex, Case]:
    """An index in which features fire rarely enough to leave silent text."""
    case = random_case(3, num_tokens=6000, k=2, d_sae=300, ids=range(60, 250), num_rows=40)
    return built(tmp_path_factory.mktemp("labels"), case), case


def places(case: Case, contexts: list[Context]) -> list[int]:
    return [int(case.row_starts[c.row]) + c.position for c in contexts]


def frequent(indexed: tuple[FeatureIndex, Case]) -> list[int]:
    fired = indexed[0].fired
    return np.flatnonzero((fired > 30) & (fired < 90)).tolist()[:20]


def test_shown_and_held_out_contexts_share_no_text(indexed: tuple[FeatureIndex, Case]):
    index, case = indexed
    features = frequent(indexed)
    assert features
    for feature in features:
        examples = examples_of(index, feature)
        pairs = [
            (examples.shown, examples.held_out),
            (examples.shown_silent, examples.held_out_silent),
        ]
        for shown, held_out in pairs:
            assert shown
            assert held_out
            distances = np.subtract.outer(places(case, shown), places(case, held_out))
            assert np.abs(distances).min() > 2 * WINDOW
            texts = [tuple(c.tokens) for c in [*shown, *held_out]]
            assert len(set(texts)) == len(texts)


def test_a_feature_fires_on_its_examples_and_not_in_silent_ones(
    indexed: tuple[FeatureIndex, Case],
):
    index, case = indexed
    for feature in frequent(indexed):
        examples = examples_of(index, feature)
        for context, place in [
            *zip(examples.shown, places(case, examples.shown), strict=True),
            *zip(examples.held_out, places(case, examples.held_out), strict=True),
        ]:
            assert case.codes[place][feature] == context.activation > 0
        silent = [*examples.shown_silent, *examples.held_out_silent]
        for place in places(case, silent):
            start, end = case.window(place, WINDOW)
            assert all(feature not in case.codes[n] for n in range(start, end))


def test_the_strongest_example_is_shown_and_both_sides_cover_the_whole_range(
    indexed: tuple[FeatureIndex, Case],
):
    index, case = indexed
    for feature in frequent(indexed):
        examples = examples_of(index, feature)
        largest = index.feature(feature).max_activation
        assert examples.shown[0].activation == largest
        assert len(examples.shown) <= TOP["shown"] + 5 * PER_INTERVAL["shown"]
        assert len(examples.held_out) <= TOP["held_out"] + 5 * PER_INTERVAL["held_out"]
        assert len(examples.held_out_silent) <= SILENT["held_out"]
        acts = np.array([act for _, act in case.active(feature)])
        for low, high in pairwise(np.linspace(0, largest, 6)):
            inside = int(((acts > low) & (acts <= high)).sum())
            for side in (examples.shown, examples.held_out):
                among = [c for c in side if low < c.activation <= high]
                assert len(among) >= 1 or inside < 5


def test_examples_are_the_same_for_the_same_seed(indexed: tuple[FeatureIndex, Case]):
    feature = frequent(indexed)[0]
    assert examples_of(indexed[0], feature) == examples_of(indexed[0], feature)
    other = examples_of(indexed[0], feature, seed=1)
    assert other.held_out_silent != examples_of(indexed[0], feature).held_out_silent


def test_a_feature_that_fires_once_is_shown_and_not_scored(tmp_path: Path):
    rows = [[70 + n % 50 for n in range(90)]]
    case = case_of_rows(rows, lambda n: {0: 2.0} if n == 40 else {1: 1.0}, 2)
    examples = examples_of(built(tmp_path, case), 0)
    assert [c.position for c in examples.shown] == [40]
    assert examples.held_out == []


def context(tokens: list[str], *active: int) -> Context:
    activations = [2.0 if n in active else 0.0 for n in range(len(tokens))]
    peak = active[0] if active else 0
    return Context(
        tokens=tokens,
        activations=activations,
        activation=activations[peak],
        peak=peak,
        position=0,
        row=0,
        copies=1,
    )


def hand_made() -> Examples:
    return Examples(
        shown=[context(["a", " cat", "\n", " sat"], 1, 2)],
        shown_silent=[context([" no", " thing"])],
        held_out=[context(["one", f" cat{n}"], 1) for n in range(7)],
        held_out_silent=[context(["other", f" dog{n}"]) for n in range(6)],
    )


def test_the_explain_question_marks_tokens_and_has_no_held_out_text():
    asked = explain_question(hand_made())[1]["content"]
    assert "a« cat↵» sat" in asked
    assert "no thing" in asked
    assert "cat0" not in asked
    assert "dog0" not in asked


def test_the_detect_questions_have_every_held_out_text_once_unmarked_and_shuffled():
    questions = detect_questions("cats", hand_made(), seed=4)
    assert [len(truths) for _, truths in questions] == [10, 3]
    asked = [line for messages, _ in questions for line in messages[1]["content"].splitlines()]
    numbered = [line for line in asked if line[:1].isdigit()]
    assert sorted(line.partition(". ")[2] for line in numbered) == sorted(
        [f"one cat{n}" for n in range(7)] + [f"other dog{n}" for n in range(6)]
    )
    truths = [truth for _, some in questions for truth in some]
    assert truths == ["cat" in line for line in numbered]
    assert truths != sorted(truths, reverse=True)
    assert "Description: cats" in asked


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("LABEL: names of modules", "names of modules"),
        ("They follow import.\n**Label:** “names of modules”", "names of modules"),
        ("LABEL: first\nLABEL: second", "second"),
        ("<think>LABEL: a guess\n</think>\nLABEL: names  of\tmodules", "names of modules"),
        ("names of modules", "names of modules"),
        ("<b>names</b>", "<b>names</b>"),
        ("Well.\nI cannot say.", None),
        ("LABEL:   ", None),
        ("", None),
        ("<think>never ends LABEL: x", None),
        ("x" * 500, None),
    ],
)
def test_a_label_is_read_from_an_answer(answer: str, label: str | None):
    assert read_label(answer) == label


@pytest.mark.parametrize(
    ("answer", "judged"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("Text [2] is about dogs.\n[1,0,0]", [True, False, False]),
        ("<think>[0,0,0]</think>\n```json\n[true, false, true]\n```", [True, False, True]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ('[1, 0, "1"]', None),
        ("[1, 0, null]", None),
        ("yes, no, yes", None),
        ("[1, 0, 1", None),
        ("", None),
    ],
)
def test_judgments_are_read_only_if_every_text_is_judged(answer: str, judged: list[bool] | None):
    assert read_judgments(answer, 3) == judged


def test_the_score_agrees_with_counting_by_hand():
    truths = [True] * 4 + [False] * 6
    judged = [True, True, True, False] + [True] + [False] * 5
    score = detection_score(truths, judged)
    assert score is not None
    assert (score.precision, score.recall) == (0.75, 0.75)
    assert score.balanced_accuracy == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert (score.activating, score.silent) == (4, 6)


def test_without_predictions_there_is_no_precision_and_without_both_kinds_no_score():
    silent = detection_score([True, False], [False, False])
    assert silent is not None
    assert (silent.precision, silent.recall, silent.balanced_accuracy) == (None, 0.0, 0.5)
    assert detection_score([True, True], [True, False]) is None
    assert detection_score([], []) is None


LOOPS = ["\n", " \n", "-", "label", "label\n", "LABEL: ", "<think>", "</think>", "[", "[0, ", "[]"]
"""What a model that loops repeats without end."""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("end", ["", "x", "\nLABEL: x\n[1]"])
def test_a_looping_models_answer_is_read_in_no_time(loop: str, end: str) -> None:
    answer = loop * (200_000 // len(loop)) + end
    began = time.perf_counter()
    label, judged = read_label(answer), read_judgments(answer, 1)
    assert time.perf_counter() - began < 10
    if end.startswith("\n") and loop != "<think>":
        assert (label, judged) == ("x", [True])
