"""Every response is one that the OpenAPI document describes: no server error, no hang, nothing from
outside the data folder.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from starlette.types import ASGIApp

from backend.app import create_app
from backend.settings import Settings
from tests.backend.fake_engine import fake_job
from tests.backend.fake_inference import FAKE_INFERENCE
from tests.chaos.conftest import Twin
from tests.chaos.workbench import wait_until

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES_PER_OPERATION = 8
SECRET = "nobody may read this"
BOUNDED = settings(
    max_examples=EXAMPLES_PER_OPERATION,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Served(NamedTuple):
    """An API on a port, and its finished run."""

    url: str
    run_id: str
    data_dir: Path


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve in a thread of this process; yields the URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def api(twin: Twin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An API with a trained run, next to a file that must not be readable."""
    folder = tmp_path_factory.mktemp("api")
    data_dir = folder / "data"
    shutil.copytree(twin.workbench.data_dir, data_dir)
    (folder / "secret.txt").write_text(SECRET)
    here = Settings(data_dir=data_dir, changes_per_minute=1_000_000)
    with served(create_app(here, command=fake_job, inference=FAKE_INFERENCE)) as url:
        yield Served(url, twin.run_id, data_dir)


def operations(api: Served) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{api.url}/api/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_response_is_one_that_the_openapi_document_describes(
    api: Served, mode: GenerationMode
) -> None:
    """Every operation with valid and invalid input, half the time for a run that exists."""
    for operation in operations(api):
        about_a_run = "{run_id}" in operation.path and operation.method.upper() != "DELETE"

        @BOUNDED
        @given(
            case=operation.as_strategy(generation_mode=mode),
            is_known=st.booleans() if about_a_run else st.just(False),
        )
        def ask(case: Case, is_known: bool) -> None:
            if is_known:
                case.path_parameters["run_id"] = api.run_id
            case.call_and_validate(checks=CHECKS, timeout=60)

        with suppress(Unsatisfiable):  # an operation without inputs has no invalid ones
            ask()


def outside(api: Served) -> dict[str, str]:
    """Files next to the data folder."""
    folder = api.data_dir.parent
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}


def ask(api: Served, method: str, path: str, **more: Any) -> httpx.Response:
    """Send a request and check what must hold for any response."""
    with httpx.Client(base_url=api.url, trust_env=False, timeout=60) as http:
        before = outside(api)
        answer = http.request(method, f"/api{path}", **more)
    assert answer.status_code < 500, (method, path, more, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]
    assert SECRET not in answer.text
    assert outside(api) == before
    assert {path.name for path in api.data_dir.parent.iterdir()} == {"data", "secret.txt"}
    return answer


TRAVERSALS = st.sampled_from(
    ["..", "../..", "../secret.txt", "%2e%2e/%2e%2e", "..\\..", "/etc/passwd", "/", "~", ".",
     "secret.txt\0", "\0", "a" * 5_000, "💥" * 200, "\u202e", "' OR 1=1 --", "%", "_", "-1", "None"]
)  # fmt: skip
TEXTS = TRAVERSALS | st.text(max_size=50)
NUMBERS = st.sampled_from(
    [-1, 0, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 10**400]
)
RUN_PATHS = st.sampled_from(
    ["", "/metrics", "/log", "/notices", "/snapshots", "/features", "/features/0", "/events",
     "/features/0/history", "/lookup?text=a", "/export", "/map", "/densities", "/labels"]
)  # fmt: skip
FUZZ = settings(BOUNDED, max_examples=40)


@FUZZ
@given(run_id=TEXTS, path=RUN_PATHS, method=st.sampled_from(["GET", "DELETE", "PATCH", "POST"]))
def test_no_id_leads_out_of_the_data_folder(
    api: Served, run_id: str, path: str, method: str
) -> None:
    answer = ask(api, method, f"/runs/{quote(run_id, safe='').replace('.', '%2E')}{path}")
    # 307 redirects from "runs//" to "runs/" only.
    assert answer.status_code in (307, 400, 404, 405, 409, 422) or (run_id, path) in EMPTY
    ask(api, "GET", "/compare", params={"runs": f"{run_id},{api.run_id}"})


EMPTY = {("", ""), (".", ""), ("", "/"), ("..", "")}
"""Paths that the client itself normalizes to the list of runs or above."""


@FUZZ
@given(number=NUMBERS | st.integers(), data=st.data())
def test_no_number_breaks_a_request(api: Served, number: int, data: st.DataObject) -> None:
    name = data.draw(
        st.sampled_from(
            ["features/N", "features/N/history", "features?snapshot=N", "features?limit=N",
             "features?cursor=N", "metrics?since_step=N", "metrics?max_points=N", "log?tail=N",
             "lookup?text=a&min_count=N", "lookup?text=a&limit=N", "labels?feature=N",
             "features?min_density=N", "events?after=N", "export?snapshot=N"]
        )
    )  # fmt: skip
    ask(api, "GET", f"/runs/{api.run_id}/{name.replace('N', str(number))}")
    ask(api, "GET", f"/runs?cursor={number}&limit={number}")
    ask(api, "GET", f"/runs?cursor={number}")
    ask(api, "PATCH", f"/runs/{api.run_id}", content=json.dumps({"queue_position": number}))
    field = data.draw(st.sampled_from(FIELDS))
    ask(api, "POST", "/config/estimate", content=json.dumps({"config": nested(field, number)}))
    waiting = json.dumps({"config": nested(field, number), "name": "finish"})
    ask(api, "POST", "/runs", content=waiting)


FIELDS = [
    "seed", "model.layer", "data.seed", "data.ctx_len", "data.num_samples", "data.heldout_tokens",
    "sae.d_sae", "sae.k", "sae.expansion_factor", "train.total_tokens", "train.num_epochs",
    "train.lr", "train.grad_clip", "train.auxk_alpha", "train.save_every", "train.snapshot_every",
    "index.tokens", "index.snapshot_tokens",
]  # fmt: skip


def nested(field: str, value: object) -> dict[str, object]:
    """`{"sae": {"k": value}}` for `sae.k`."""
    for name in reversed(field.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


@settings(FUZZ, max_examples=25)
@given(text=TEXTS | st.just("x" * 2**20), data=st.data())
def test_no_text_breaks_a_request(api: Served, text: str, data: st.DataObject) -> None:
    field = data.draw(
        st.sampled_from(["model.name", "data.dataset", "data.activations", "sae.pretrained",
                         "data.subset", "data.text_column", "model.hook_point", "nonsense"])
    )  # fmt: skip
    for body in (
        {"config": nested(field, text), "name": "finish"},
        {"preset": text},
        {"name": text, "tags": [text], "notes": text, "config": {text: text}},
    ):
        ask(api, "POST", "/runs", json=body)
        ask(api, "POST", "/config/estimate", json=body)
    ask(api, "POST", "/imports", json={"path": text, "model": text, "layer": 1})
    ask(api, "POST", "/sweeps", json={"preset": "quick-test", "grid": {text: [text]}})
    ask(api, "PATCH", f"/runs/{api.run_id}", json={"name": text, "notes": text, "tags": [text]})
    ask(api, "PUT", f"/runs/{api.run_id}/features/1/label", json={"label": text, "notes": text})
    ask(api, "POST", f"/runs/{api.run_id}/activations", json={"text": text})
    ask(api, "GET", "/runs", params={"q": text[:300], "tag": text[:300]})
    ask(api, "GET", f"/runs/{api.run_id}/lookup", params={"text": text[:1000]})
    ask(api, "GET", f"/runs/{api.run_id}/features", params={"q": text[:300], "cursor": text[:300]})


BODIES = st.binary(max_size=200) | st.sampled_from(
    [b"", b"null", b"[]", b"{", b'"\xff\xfe"', b'{"name": "\xc3\x28"}', b'{"name": "\\ud800"}',
     b'{"config": {"\\ud800": 1}}', b'{"name": "\\u0000"}', b'{"config": {"seed": NaN}}',
     b'{"config": {"train": {"lr": Infinity}}}', b"[" * 100_000, b"\x00" * 100,
     b'{"config": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
     b'{"config": {"seed": ' + b"9" * 5_000 + b"}}", b'{"name": "' + b"x" * 5 * 2**20 + b'"}']
)  # fmt: skip


@FUZZ
@given(body=BODIES, path=st.sampled_from(["/runs", "/sweeps", "/imports", "/config/estimate"]))
def test_no_body_breaks_a_request(api: Served, body: bytes, path: str) -> None:
    ask(api, "POST", path, content=body, headers={"Content-Type": "application/json"})
    ask(api, "PATCH", f"/runs/{api.run_id}", content=body)
    ask(api, "PUT", f"/runs/{api.run_id}/features/1/label", content=body)
