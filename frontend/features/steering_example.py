"""A feature and a prompt of a run that show what steering does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from frontend.api.cache import client
from sae_engine.schema.features import Context, FeatureRow

CANDIDATES = 200
"""Most frequent features, except dense ones, among which an example is looked for."""
COMPARED = 8
"""Candidates whose statistics are compared."""
PROMPT_TOKENS = 12


class Example(NamedTuple):
    feature: int
    prompt: str


def steering_example(run_id: str, step: int, steered: Collection[int] = ()) -> Example | None:
    """The candidate that tells one word best from the others, by F1, and a text without that word.

    If one of the candidates is `steered` already, the one that comes after it. None if no feature
    that fires has a word for its top token.
    """
    api = client()
    page = api.features(run_id, snapshot=step, state="alive", sort="density", limit=CANDIDATES)
    rows = candidates(page.items)
    if not rows:
        return None
    found = {row.index: api.feature(run_id, row.index, snapshot=step) for row in rows}
    rows = sorted(rows, key=lambda row: -found[row.index].top_tokens[0].f1)
    shown = [place for place, row in enumerate(rows) if row.index in steered]
    best = rows[(shown[-1] + 1) % len(rows) if shown else 0]
    word = _word(best)
    texts = [_before(row.example) for row in page.items if row.index != best.index and row.example]
    prompt = next((text for text in texts if text and word not in text.casefold()), "The")
    return Example(best.index, prompt)


def candidates(rows: Sequence[FeatureRow]) -> list[FeatureRow]:
    """Features with a word for their top token, up to the median of their largest activations.

    A strength is a multiple of the largest activation; a larger one would drown the text.
    """
    worded = sorted(filter(_has_word, rows), key=lambda row: row.max_activation)
    return worded[: (len(worded) + 1) // 2][-COMPARED:]


def _has_word(row: FeatureRow) -> bool:
    return bool(row.top_tokens) and len(_word(row)) >= 3 and _word(row).isalpha()


def _word(row: FeatureRow) -> str:
    return row.top_tokens[0].strip(" ▁").casefold()


def _before(context: Context) -> str:
    """The tokens before a context's peak, without the spaces at their ends."""
    start = max(0, context.peak - PROMPT_TOKENS)
    return "".join(context.tokens[start : context.peak]).strip()
