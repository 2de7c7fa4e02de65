"""Behind a proxy below a path, whether the proxy keeps the path or takes it off."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from backend.app import create_app
from backend.settings import Settings, load_settings
from sae_engine.errors import UserError
from tests.backend.conftest import URL
from tests.backend.fake_engine import fake_job

TOKEN = "let me in"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(params=["/sae", "/tools/sae"])
def base(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def proxied(settings: Settings, base: str) -> Iterator[TestClient]:
    settings = settings.model_copy(update={"base_path": base, "token": SecretStr(TOKEN)})
    with TestClient(create_app(settings, command=fake_job), URL, follow_redirects=False) as client:
        yield client


def test_the_api_answers_with_and_without_the_path(proxied: TestClient, base: str) -> None:
    for prefix in (base, ""):
        assert proxied.get(f"{prefix}/api/health").status_code == 200
        assert proxied.get(f"{prefix}/api/runs").status_code == 401
        assert proxied.get(f"{prefix}/api/runs", headers=BEARER).status_code == 200
        assert proxied.get(f"{prefix}x/api/health", headers=BEARER).status_code == 404


def test_the_reference_and_locations_name_the_path(proxied: TestClient, base: str) -> None:
    for prefix in (base, ""):
        page = proxied.get(f"{prefix}/api/docs", headers=BEARER).text
        addresses = re.findall(r"['\"](/[^'\"]+)['\"]", page)
        assert f"{base}/api/openapi.json" in addresses
        for address in set(addresses) - {"/docs/oauth2-redirect"}:  # not used
            assert address.startswith(f"{base}/api/"), address
            assert proxied.get(address, headers=BEARER).status_code == 200, address
    servers = proxied.get(f"{base}/api/openapi.json", headers=BEARER).json()["servers"]
    assert servers == [{"url": f"{base}/api"}]
    run = proxied.post(f"{base}/api/runs", json={"preset": "quick-test"}, headers=BEARER)
    assert run.headers["location"] == f"{base}/api/runs/{run.json()['id']}"


def test_the_login_stays_below_the_path(proxied: TestClient, base: str) -> None:
    for prefix in (base, ""):
        refused = proxied.get(f"{prefix}/run?id=a")
        assert refused.headers["location"].startswith(f"{base}/login?next=%2F")
        page = proxied.get(refused.headers["location"])
        [action] = re.findall(r'action="([^"]+)"', page.text)
        entered = proxied.post(action, data={"token": TOKEN})
        assert entered.headers["location"] == f"{base}/run?id=a"
        assert f"Path={base};" in entered.headers["set-cookie"]
    for elsewhere in ("//evil.example", f"{base}//..//evil", "/other", f"{base}evil"):
        answer = proxied.post(f"{base}/login", params={"next": elsewhere}, data={"token": TOKEN})
        assert answer.headers["location"].startswith(f"{base}/")


@pytest.mark.parametrize(
    ("given", "base"), [("sae", "/sae"), ("/sae/", "/sae"), ("/", ""), (" a/b ", "/a/b")]
)
def test_the_setting_needs_no_exact_slashes(
    monkeypatch: pytest.MonkeyPatch, given: str, base: str
) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_BASE_PATH", given)
    assert load_settings().base_path == base


@pytest.mark.parametrize("given", ["http://x/y", "/a b", "/a//b", "/a?b"])
def test_a_path_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_BASE_PATH", given)
    with pytest.raises(UserError, match="SAE_WORKBENCH_BASE_PATH"):
        load_settings()
