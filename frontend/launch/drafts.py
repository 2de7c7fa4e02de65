"""A run or a sweep as the launch form holds it, and how it is submitted exactly once."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import streamlit as st

from frontend.api.cache import client
from frontend.launch.forms import GRID, problems
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import Value, changed_from, grid_size, merge
from sae_engine.schema.machine import EstimateRequest
from sae_engine.schema.runs import Run, RunCreate, SweepCreate

KEYS = "launch-idempotency-keys"
DOUBLED_SECONDS = 10
"""The same request within this time counts as a double click."""


class Recipe(NamedTuple):
    """What the form starts from: a preset, or a run to clone."""

    preset: str
    """The preset that is submitted."""
    base: RunConfig
    """The preset's configuration; only differences from it are submitted."""
    initial: RunConfig
    """The values that the form shows at first."""
    source: Run | None = None
    """The run that is cloned."""


class Draft(NamedTuple):
    """The current content of the form."""

    recipe: Recipe
    values: dict[str, Value]
    grid: dict[str, list[Value]]
    """Values to try, by field; empty for a single run."""

    @property
    def changes(self) -> dict[str, Any]:
        """Differences from the recipe's base."""
        return changed_from(self.recipe.base, self.values)

    @property
    def first_changes(self) -> dict[str, Any]:
        """The same, for the first run of a sweep."""
        first = {field: values[0] for field, values in self.grid.items()}
        return changed_from(self.recipe.base, self.values | first)

    @property
    def whole(self) -> dict[str, Any]:
        """The whole configuration of the first run, not yet validated."""
        return merge(self._base, self.first_changes)

    @property
    def problems(self) -> dict[str, str]:
        """The validation errors of all runs, by field; `GRID` for those of values to try."""
        alone = problems(merge(self._base, self.changes))
        found: dict[str, str] = {}
        for values in itertools.product(*self.grid.values()):
            tried = dict(zip(self.grid, values, strict=True))
            changes = changed_from(self.recipe.base, self.values | tried)
            for field, message in problems(merge(self._base, changes)).items():
                place = field if field in alone and field not in self.grid else GRID
                found.setdefault(place, message)
        return found

    @property
    def _base(self) -> dict[str, Any]:
        return self.recipe.base.model_dump(mode="json")

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return grid_size(self.grid)

    def estimate_request(self) -> EstimateRequest:
        """The request for a forecast."""
        return EstimateRequest(preset=self.recipe.preset, config=self.changes, grid=self.grid)


class Started(NamedTuple):
    """What was started: the page that shows it, and its id there."""

    page: str
    id: str


def start(draft: Draft) -> Started:
    """Submit the form; raises `ApiProblem`."""
    changes = draft.changes
    body: dict[str, Any] = {"preset": draft.recipe.preset, "name": changes.pop("name", None)}
    body["config"] = changes
    if draft.recipe.source is not None:
        body["cloned_from"] = draft.recipe.source.id
    if draft.grid:
        sweep = SweepCreate.model_validate(body | {"grid": draft.grid})
        with sent_once(sweep) as key:
            return Started("sweep", client().create_sweep(sweep, idempotency_key=key).id)
    run = RunCreate.model_validate(body)
    with sent_once(run) as key:
        return Started("run", client().create_run(run, idempotency_key=key).id)


class _Sent(NamedTuple):
    """A request's idempotency key, and when it was answered."""

    key: str
    done_at: float | None


@contextmanager
def sent_once(body: RunCreate) -> Generator[str]:
    """A request's idempotency key, the same until `DOUBLED_SECONDS` after its answer."""
    keys: dict[str, _Sent] = st.session_state.setdefault(KEYS, {})
    content = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    sent = keys.get(content)
    if sent is None or _is_old(sent):
        sent = keys[content] = _Sent(str(uuid.uuid4()), None)
    yield sent.key
    keys[content] = _Sent(sent.key, time.monotonic())


def _is_old(sent: _Sent) -> bool:
    return sent.done_at is not None and time.monotonic() - sent.done_at > DOUBLED_SECONDS
