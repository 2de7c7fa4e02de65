"""The answer of endpoints whose result is still being computed: 202 with the progress."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from sae_engine.schema.analysis import AnalysisProgress

NOT_READY: dict[int | str, dict[str, Any]] = {
    202: {"model": AnalysisProgress, "description": "The result is being computed; ask again"}
}
"""The `responses` of such an endpoint, besides its result."""


def not_ready(progress: AnalysisProgress, response: Response) -> AnalysisProgress:
    """Answer 202, to be asked again in a second."""
    response.status_code = 202
    response.headers["Retry-After"] = "1"
    return progress
