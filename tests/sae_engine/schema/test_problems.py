"""pydantic's errors in words that name the value."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from sae_engine.schema.problems import message_of


class Sample(BaseModel):
    whole: int = Field(default=1, ge=1, le=9)
    number: float = Field(default=1, gt=0)
    switch: bool = True
    text: str = Field(default="a", min_length=1, max_length=5)
    kind: Literal["a", "b"] = "a"
    even: int = 2

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is odd; give an even number.")
        return value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": "abc"}, "'abc' is not a whole number."),
        ({"whole": 1.5}, "1.5 is not a whole number."),
        ({"whole": None}, "None is not a whole number."),
        ({"whole": 0}, "It must be at least 1 (got 0)."),
        ({"whole": 10}, "It must be at most 9 (got 10)."),
        ({"number": "fast"}, "'fast' is not a number."),
        ({"number": 0}, "It must be above 0 (got 0)."),
        ({"switch": "maybe"}, "'maybe' is not true or false."),
        ({"text": 5}, "5 is not text."),
        ({"text": ""}, "It is required."),
        ({"text": "x" * 1200}, "It has 1,200 characters; the limit is 5."),
        ({"kind": "c"}, "It must be 'a' or 'b' (got 'c')."),
        ({"even": 3}, "3 is odd; give an even number."),
    ],
)
def test_a_sentence_names_the_value_and_the_bound(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate(given)
    [error] = caught.value.errors()
    assert message_of(error) == message


def test_long_values_are_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate({"whole": "9" * 5 + "x" * 10_000})
    assert len(message_of(caught.value.errors()[0])) == 500
