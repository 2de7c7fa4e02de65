"""The list of features as part of an address, and the way from one of its features to the next.

Read by the list's page, which links to features, and by the feature page, which steps among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, get_args

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.features.hits import Steps, steps_among
from frontend.html.format import count
from frontend.shell.limits import as_number, out_of_bounds, too_long
from frontend.shell.url import Entry, choice_param, param
from sae_engine.schema.features import (
    FeatureMark,
    FeaturePage,
    FeatureSort,
    FeatureState,
    SortOrder,
)

SORTS: tuple[FeatureSort, ...] = get_args(FeatureSort)
STATES: tuple[FeatureState, ...] = get_args(FeatureState)
ORDERS: tuple[SortOrder, ...] = get_args(SortOrder)
MARKS: tuple[FeatureMark, ...] = get_args(FeatureMark)
MOST_FILTER_CHARS = 200
"""Limited by the API."""
LISTING_PARAMS = ("sort", "order", "state", "mark", "min_density", "max_density", "filter")
_CHUNK = 500
_MOST_CHUNKS = 20


def first_order(sort: FeatureSort) -> SortOrder:
    """The order in which a column is sorted first."""
    return "asc" if sort in ("index", "label") else "desc"


class Listing(NamedTuple):
    """Order and filters of a list."""

    sort: FeatureSort = "clarity"
    order: SortOrder = "desc"
    state: FeatureState | None = None
    mark: FeatureMark | None = None
    min_density: float | None = None
    max_density: float | None = None
    q: str = ""
    problem: str = ""
    """What is wrong with the filters; empty if nothing is."""

    @classmethod
    def of_url(cls, text: str = "q") -> Listing:
        """The list that the address holds, with the filter's text under the name `text`."""
        sort: FeatureSort = choice_param("sort", SORTS) or "clarity"
        lowest, highest = (_density(name) for name in ("min_density", "max_density"))
        q = param(text) or ""
        problem = lowest.problem or highest.problem or too_long(q, MOST_FILTER_CHARS)
        return cls(
            sort=sort,
            order=choice_param("order", ORDERS) or first_order(sort),
            state=choice_param("state", STATES),
            mark=choice_param("mark", MARKS),
            min_density=lowest.value,
            max_density=highest.value,
            q=q,
            problem=problem or _crossed(lowest.value, highest.value),
        )

    @property
    def state_of_address(self) -> dict[str, object | None]:
        """Its part of a feature's address; empty if it lists every feature by index."""
        if self == Listing(sort="index", order="asc"):
            return {}
        return {
            "sort": self.sort,
            "order": None if self.order == first_order(self.sort) else self.order,
            "state": self.state,
            "mark": self.mark,
            "min_density": self.min_density,
            "max_density": self.max_density,
            "filter": self.q,
        }

    def page(self, run_id: str, snapshot: int, *, limit: int, cursor: str | None) -> FeaturePage:
        """Part of the list; raises `ApiProblem`."""
        return client().features(
            run_id,
            snapshot=snapshot,
            sort=self.sort,
            order=self.order,
            min_density=self.min_density,
            max_density=self.max_density,
            state=self.state,
            mark=self.mark,
            q=self.q,
            limit=limit,
            cursor=cursor,
        )


def _density(name: str) -> Entry:
    """A bound of the density, from 0 to 1; its problem is in percent, as its box is."""
    text = param(name)
    if text is None:
        return Entry(None, "")
    value = as_number(text, whole=False)
    typed = text if value is None else f"{value * 100:.6g}"
    title = f"{name[:3].capitalize()} density in percent"
    problem = out_of_bounds(title, typed, 0, 100, whole=False)
    return Entry(None if problem else value, problem)


def _crossed(lowest: float | None, highest: float | None) -> str:
    if lowest is None or highest is None or lowest <= highest:
        return ""
    return f"The minimum density ({lowest * 100:.6g}%) exceeds the maximum ({highest * 100:.6g}%)."


def steps_in_list(run_id: str, snapshot: int, listing: Listing, index: int) -> Steps | None:
    """The steps from a feature in a list; None if it is not there, or too far down."""
    before: list[int] = []
    for chunk, total in _chunks(run_id, snapshot, listing):
        before += chunk
        if index in before[:-1] or (index in before and len(before) == total):
            place = before.index(index) + 1
            return steps_among(before, index, f"{count(place)} of {count(total)} in the list")
    return None


def _chunks(run_id: str, snapshot: int, listing: Listing) -> Iterator[tuple[list[int], int]]:
    cursor = None
    for _ in range(_MOST_CHUNKS):
        chunk, total, cursor = _chunk(run_id, snapshot, listing, cursor)
        yield chunk, total
        if cursor is None:
            return


@st.cache_data(ttl=60, show_spinner=False, max_entries=200)
def _chunk(
    run_id: str, snapshot: int, listing: Listing, cursor: str | None
) -> tuple[list[int], int, str | None]:
    """Features of a part of a list, the list's length, and the cursor of the next part."""
    try:
        page = listing.page(run_id, snapshot, limit=_CHUNK, cursor=cursor)
    except ApiProblem as error:
        if error.unreachable:
            raise
        return [], 0, None
    return [row.index for row in page.items], page.total, page.next_cursor
