"""A lookup as part of a page's address, and the way from one of its features to the next.

Read by the lookup page, which links to features, and by the feature page, which steps among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.format import count
from frontend.html.tokens import chip
from frontend.shell.limits import too_long
from frontend.shell.url import Entry, choice_param, flag_param, number_param, param
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch, literal_text

MATCHES: tuple[TokenMatch, ...] = get_args(TokenMatch)
RANKS: tuple[LookupRank, ...] = get_args(LookupRank)
MOST_HITS = 50
"""Features that a lookup lists, and that a feature page steps through."""
LEAST_COUNT = 5
LEAST_COUNT_TITLE = "Minimum count"
LARGEST_COUNT = 10**9
MOST_CHARS = 500
"""Limited by the API."""
LOOKUP_PARAMS = ("q", "match", "exact_case", "rank", "min_count")


def least_count() -> Entry:
    """The smallest count of the address."""
    return number_param("min_count", LEAST_COUNT_TITLE, 1, LARGEST_COUNT, default=LEAST_COUNT)


class Lookup(NamedTuple):
    """A text to look up, and how."""

    text: str
    match: TokenMatch = "fold"
    exact_case: bool = False
    rank: LookupRank = "f1"
    min_count: int = LEAST_COUNT

    @classmethod
    def of_url(cls) -> Lookup:
        """The lookup that the address holds; its text may be empty."""
        return cls(
            text=param("q") or "",
            match=choice_param("match", MATCHES) or "fold",
            exact_case=flag_param("exact_case"),
            rank=choice_param("rank", RANKS) or "f1",
            min_count=int(least_count().value or LEAST_COUNT),
        )

    @property
    def problem(self) -> str:
        """What is wrong with the address's text or count; empty if nothing is."""
        return too_long(self.text, MOST_CHARS) or least_count().problem

    @property
    def state(self) -> dict[str, object | None]:
        """Its part of an address; defaults are left out."""
        return {
            "q": self.text,
            "match": None if self.match == "fold" else self.match,
            "exact_case": self.exact_case or None,
            "rank": None if self.rank == "f1" else self.rank,
            "min_count": None if self.min_count == LEAST_COUNT else self.min_count,
        }

    @property
    def in_text(self) -> Lookup:
        """The lookup of every occurrence of the same text, with the same case and spaces."""
        return self._replace(
            text=literal_text(self.text, self.match),
            match="text",
            exact_case=self.exact_case or self.match == "exact",
        )

    def answer(self, run_id: str, snapshot: int) -> LookupResult:
        """Its features in a snapshot, at most `MOST_HITS`; raises `ApiProblem`."""
        return client().lookup(
            run_id,
            self.text,
            match=self.match,
            exact_case=self.exact_case,
            rank=self.rank,
            min_count=self.min_count,
            limit=MOST_HITS,
            snapshot=snapshot,
        )


class Steps(NamedTuple):
    """Where a feature stands among those of a lookup or list, and its neighbors there."""

    previous: int | None
    next: int | None
    note: str
    """HTML such as `3 of 25 for import`."""


def steps_among(indices: Sequence[int], index: int, note: str) -> Steps:
    """The steps from one of several features."""
    place = indices.index(index)
    return Steps(
        previous=indices[place - 1] if place else None,
        next=indices[place + 1] if place + 1 < len(indices) else None,
        note=note,
    )


def steps(run_id: str, snapshot: int, lookup: Lookup, index: int) -> Steps | None:
    """The steps from a feature; None if the lookup does not list it."""
    hits = _hits(run_id, snapshot, lookup)
    if index not in hits:
        return None
    place = f"{count(hits.index(index) + 1)} of {count(len(hits))}"
    return steps_among(hits, index, f"{place} for {chip(lookup.text)}")


@st.cache_data(ttl=300, show_spinner=False, max_entries=100)
def _hits(run_id: str, snapshot: int, lookup: Lookup) -> list[int]:
    """Features of a lookup, best first; a snapshot never changes."""
    try:
        return [match.index for match in lookup.answer(run_id, snapshot).features]
    except ApiProblem as error:
        if error.unreachable:
            raise
        return []
