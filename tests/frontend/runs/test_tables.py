"""Text in CSV tables is text to a spreadsheet too."""

from __future__ import annotations

import csv
import io

import pytest

from frontend.runs.tables import curves_csv, runs_csv
from sae_engine.schema.runs import MetricsSeries
from tests.frontend.samples import make_run

ONE_POINT = MetricsSeries(
    step=[1], tokens=[10], time=[1.0], series={"loss": [-0.5], "fvu": ["-Infinity"]},
    total_points=1, returned_points=1,
)  # fmt: skip


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "\uff1d1"]
)
def test_text_that_begins_like_a_formula_is_not_one(text: str) -> None:
    for table in (
        runs_csv([make_run(name=text)], {"data.text_column": [text]}),
        curves_csv([make_run(name=text)], [ONE_POINT]),
    ):
        [row] = csv.DictReader(io.StringIO(table))
        assert row["name"] == f"'{text}"
        assert row.get("data.text_column", f"'{text}") == f"'{text}"


def test_numbers_stay_numbers() -> None:
    [row] = csv.DictReader(io.StringIO(curves_csv([make_run(name="-")], [ONE_POINT])))
    assert (row["loss"], row["fvu"], row["name"]) == ("-0.5", "-Infinity", "'-")
