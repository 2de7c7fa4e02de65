"""The menu of downloads names every format and leads to the API."""

from __future__ import annotations

import re

import pytest

from frontend.shell.downloads import download_list
from sae_engine.presets import resolve_config
from sae_engine.schema.runs import Run
from tests.frontend.fake_world import World


@pytest.fixture
def run() -> Run:
    return World().add("abc/1", resolve_config("tiny", {}), name="tiny 1", status="finished")


def test_a_link_names_the_run_the_format_and_the_snapshot_of_the_features(run: Run) -> None:
    links = re.findall(r'href="([^"]+)" download', download_list(run, "40", links=True))
    start = "/api/runs/abc%2F1/export?format="
    features = ("html", "parquet", "jsonl", "neuronpedia")
    wanted = [f"{start}{name}&amp;snapshot=40" for name in features]
    assert links == [*wanted, f"{start}saelens"]


def test_pages_without_the_api_on_their_port_say_what_to_ask_it_for(run: Run) -> None:
    shown = download_list(run, None, links=False)
    assert "href" not in shown
    assert "<code>GET /api/runs/abc%2F1/export?format=html</code>" in shown
