"""A typed client of the REST API, for the pages and for notebooks.

>>> client = WorkbenchClient("http://127.0.0.1:8501")
>>> run = client.create_run(RunCreate(preset="tiny"))
>>> client.lookup(run.id, " import").features[0].index
"""

from __future__ import annotations

from frontend.api.comparisons import ComparisonCalls
from frontend.api.connection import ApiProblem
from frontend.api.features import FeatureCalls
from frontend.api.labels import LabelCalls
from frontend.api.machine import MachineCalls
from frontend.api.runs import RunCalls

__all__ = ["ApiProblem", "WorkbenchClient"]


class WorkbenchClient(MachineCalls, RunCalls, FeatureCalls, LabelCalls, ComparisonCalls):
    """All calls of the API; safe to share between threads."""
