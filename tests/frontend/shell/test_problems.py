"""A problem of the API says everything once."""

from __future__ import annotations

import pytest

from frontend.shell.problems import problem_text
from sae_engine.schema.problems import FieldProblem, Problem


@pytest.mark.parametrize(
    ("detail", "errors", "text"),
    [
        (
            "The playground is busy; try again later.",
            {},
            "The playground is busy; try again later.",
        ),
        ("Too long.", {"text": "Too long."}, "Too long."),
        ("text: Too long.", {"text": "Too long."}, "text: Too long."),
        (
            "Two are wrong.",
            {"a": "Too long.", "b": "Empty."},
            "Two are wrong.\na: Too long.\nb: Empty.",
        ),
        ("", {}, "Service Unavailable"),
    ],
)
def test_nothing_is_said_twice(detail: str, errors: dict[str, str], text: str) -> None:
    fields = [FieldProblem(field=field, message=message) for field, message in errors.items()]
    problem = Problem(
        type="about:blank", title="Service Unavailable", status=503, detail=detail, errors=fields
    )
    assert problem_text(problem) == text
