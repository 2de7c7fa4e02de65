"""A feature and a prompt of a run that show what steering does."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import NamedTuple

from frontend.api.cache import client
from sae_engine.schema.features import FeatureRow
from sae_engine.schema.playground import SteerResult

CANDIDATES = 200
"""Clearest features, among which examples are looked for."""
MOST_TRIED = 20
SEARCH_SECONDS = 10.0
"""This long after the first example, no further one is tried."""
CLEAR_GAIN = 2
"""Additional occurrences of the word that make an example convincing."""
LEAST_VARIETY = 0.45
"""A text with less only repeats itself."""
PROMPT = "The"


class Example(NamedTuple):
    feature: int
    word: str


def examples(run_id: str, step: int) -> list[Example]:
    """Features that fire on one word, clearest first."""
    page = client().features(run_id, snapshot=step, state="alive", sort="clarity", limit=CANDIDATES)
    return examples_of(page.items)


def examples_of(rows: Sequence[FeatureRow]) -> list[Example]:
    """One example for each word of three letters or more that is a feature's top token."""
    by_word: dict[str, Example] = {}
    for row in rows:
        word = row.top_tokens[0].strip(" ▁").casefold() if row.top_tokens else ""
        if len(word) >= 3 and word.isalpha() and word != PROMPT.casefold():
            by_word.setdefault(word, Example(row.index, word))
    return list(by_word.values())


def convincing(
    candidates: Sequence[Example],
    steered: Collection[int],
    answer: Callable[[Example], SteerResult | None],
) -> tuple[Example, SteerResult] | None:
    """The first example whose steered text has its word clearly more often, or else the best tried.

    If one of the candidates is `steered` already, the search begins after it. None if there is no
    candidate, or as soon as `answer` gives none.
    """
    places = [place for place, example in enumerate(candidates) if example.feature in steered]
    start = places[-1] + 1 if places else 0
    best: tuple[int, Example, SteerResult] | None = None
    deadline: float | None = None
    for example in [*candidates[start:], *candidates[:start]][:MOST_TRIED]:
        result = answer(example)
        if result is None:
            return None
        found = gain(example.word, result)
        if best is None or found > best[0]:
            best = (found, example, result)
        deadline = deadline or monotonic() + SEARCH_SECONDS  # the first may load the model
        if found >= CLEAR_GAIN or monotonic() >= deadline:
            break
    return best and best[1:]


def gain(word: str, result: SteerResult) -> int:
    """How much more often the steered text has the word; 0 if that text only repeats itself."""
    if variety(result.steered) < LEAST_VARIETY:
        return 0
    pattern = re.compile(rf"(?<![a-z]){re.escape(word)}(?![a-z])")
    plain, steered = (
        len(pattern.findall(text.casefold())) for text in (result.plain, result.steered)
    )
    return max(0, steered - plain)


def variety(text: str) -> float:
    """Share of distinct stretches of four characters in a text; 1 for a text without any."""
    stretches = [text[start : start + 4] for start in range(len(text) - 3)]
    return len(set(stretches)) / len(stretches) if stretches else 1.0
