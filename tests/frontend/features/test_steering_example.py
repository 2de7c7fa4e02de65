"""The search for an example of steering that shows an effect."""

from __future__ import annotations

import pytest

from frontend.features import steering_example
from frontend.features.steering_example import (
    Example,
    convincing,
    examples_of,
    gain,
)
from sae_engine.schema.features import Density, FeatureRow
from sae_engine.schema.playground import SteerResult

EXAMPLES = [Example(index, f"word{index}") for index in range(12)]
FLAT, CLEAR = "one two three four", "one word, two words, word"


def row(index: int, top: str) -> FeatureRow:
    """A feature with a top token."""
    return FeatureRow(
        index=index,
        density=Density(fraction=0.1, fired=1, seen=10),
        max_activation=1.0,
        state="alive",
        label=None,
        starred=False,
        clarity=0.5,
        name=None,
        example=None,
        top_tokens=[top],
    )


def result(plain: str, steered: str) -> SteerResult:
    return SteerResult(plain=plain, steered=steered, snapshot=7)


@pytest.mark.parametrize(
    ("plain", "steered", "wanted"),
    [
        ("", "a file, another File and file_name", 3),
        ("file", "the file of a file", 1),
        ("file file", "nothing of the kind", 0),
        ("", "profile filed", 0),
        ("", "file file file file file file file file", 0),
        ("", "a filefilefilefilefilefilefile", 0),
        ("", "", 0),
    ],
)
def test_the_gain_counts_whole_words_and_not_mere_repetition(
    plain: str, steered: str, wanted: int
) -> None:
    assert gain("file", result(plain, steered)) == wanted


def test_there_is_one_example_for_each_word_that_the_prompt_does_not_have() -> None:
    tops = ["(", "of", " Raise", " raise", "x1y2", " The", "value"]
    rows = [row(index, top) for index, top in enumerate(tops)]
    assert examples_of(rows) == [Example(2, "raise"), Example(6, "value")]
    assert examples_of([]) == []


def test_the_first_example_with_a_clear_effect_is_chosen() -> None:
    tried: list[int] = []

    def answer(example: Example) -> SteerResult:
        tried.append(example.feature)
        clear = example.feature in (2, 5)
        return result(FLAT, CLEAR.replace("word", example.word) if clear else FLAT)

    for steered, chosen, asked in (((), 2, [0, 1, 2]), ((9, 2), 2, None), ((2,), 5, [3, 4, 5])):
        tried.clear()
        found = convincing(EXAMPLES, steered, answer)
        assert found is not None
        assert found[0].feature == chosen
        assert asked is None or tried == asked


def test_without_a_clear_effect_the_best_is_chosen() -> None:
    tried: list[int] = []

    def answer(example: Example) -> SteerResult:
        tried.append(example.feature)
        return result(FLAT, f"{FLAT} {example.word}" if example.feature == 4 else FLAT)

    found = convincing(EXAMPLES, (), answer)
    assert found is not None
    assert found[0].feature == 4
    assert tried == list(range(len(EXAMPLES)))


def test_the_search_ends_in_time_after_a_problem_and_without_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def answer(example: Example) -> SteerResult | None:
        tried.append(example.feature)
        return None if example.feature == 1 else result(FLAT, FLAT)

    assert convincing(EXAMPLES, (), answer) is None
    assert tried == [0, 1]
    assert convincing([], (), answer) is None
    monkeypatch.setattr(steering_example, "SEARCH_SECONDS", 0)
    found = convincing(EXAMPLES, (), answer)
    assert found is not None
    assert found[0].feature == 0
