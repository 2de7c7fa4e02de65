"""The download menu names every format and links to the API."""

from __future__ import annotations

import re

from frontend.shell.downloads import download_list
from tests.frontend.samples import make_run

RUN = make_run(id="abc/1", status="finished")


def test_a_link_names_the_run_the_format_and_the_snapshot_of_the_features() -> None:
    links = re.findall(r'href="([^"]+)" download', download_list(RUN, "40", links=True))
    start = "/api/runs/abc%2F1/export?format="
    features = ("html", "parquet", "jsonl", "neuronpedia")
    wanted = [f"{start}{name}&amp;snapshot=40" for name in features]
    assert links == [*wanted, f"{start}saelens"]


def test_pages_without_the_api_on_their_port_show_the_request_instead_of_a_link() -> None:
    shown = download_list(RUN, None, links=False)
    assert "href" not in shown
    assert "<code>GET /api/runs/abc%2F1/export?format=html</code>" in shown
