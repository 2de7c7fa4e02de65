"""Requests are authorized by host, origin, token and cookie, over HTTP and WebSockets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from backend.http.login import COOKIE, MAX_WRONG_PER_MINUTE, TokenLogin
from backend.http.security import AccessGuard
from backend.serve import serve
from backend.settings import SOURCE_ROOT, Settings, is_loopback, load_settings
from sae_engine.errors import UserError

SOCKET_URL = "ws://127.0.0.1:8501/_stcore/stream"
TOKEN = "let me in"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def guarded(base_url: str = "http://127.0.0.1:8501", **settings: Any) -> TestClient:
    return TestClient(guard(**settings), base_url, follow_redirects=False)


def guard(**settings: Any) -> AccessGuard:
    async def hello(_: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    paths = ("/", "/api/health", "/api/runs", "/_stcore/health", "/login")
    routes = [Route(path, hello, methods=["GET", "POST"]) for path in paths]
    app = Starlette(routes=[*routes, WebSocketRoute("/_stcore/stream", chat)])
    return AccessGuard(app, Settings(data_dir=Path("unused"), **settings))


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8501", "LOCALHOST"]
)
def test_loopback_host_names_are_accepted(host: str) -> None:
    assert guarded().get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil"])
def test_other_host_names_are_refused(host: str) -> None:
    answer = guarded().get("/api/runs", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert "SAE_WORKBENCH_ALLOWED_HOSTS" in answer.json()["detail"]


def test_allowed_hosts_are_accepted() -> None:
    client = guarded(allowed_hosts="box.example, other.example:80")
    allowed = {"box.example": 200, "box.example:99": 200, "other.example:80": 200}
    for host, status in (allowed | {"other.example:81": 403}).items():
        assert client.get("/", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:8501", "127.0.0.1:8501", 200),
        ("http://LOCALHOST:8501", "localhost:8501", 200),
        ("http://localhost", "localhost:80", 200),
        ("http://[::1]:8501", "[::1]:8501", 200),
        ("http://localhost:3000", "localhost:8501", 403),
        ("http://localhost:8501", "127.0.0.1:8501", 403),
        ("https://evil.example", "localhost:8501", 403),
        ("null", "localhost:8501", 403),
        ("http://localhost:99999", "localhost:8501", 403),
        ("", "localhost:8501", 403),
    ],
)
def test_pages_of_other_origins_cannot_post_or_connect(origin: str, host: str, status: int) -> None:
    headers = {"Origin": origin, "Host": host}
    client = guarded()
    assert client.post("/api/runs", headers=headers).status_code == status
    assert connects(client, headers) == (status == 200)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/runs", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/api/runs?q=1", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("/api/runs", {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8501"}, 200),
        ("/api/runs", {"Sec-Fetch-Site": "same-site"}, 403),
        ("/api/runs", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("/api/runs", {"Sec-Fetch-Site": "none"}, 200),
        ("/", {"Sec-Fetch-Site": "cross-site"}, 200),
    ],
)
def test_images_and_links_of_other_sites_cannot_read_the_api(
    path: str, headers: dict[str, str], status: int
) -> None:
    assert guarded().get(path, headers=headers).status_code == status


def connects(client: TestClient, headers: dict[str, str]) -> bool:
    try:
        with client.websocket_connect(SOCKET_URL, headers=headers) as socket:
            return socket.receive_text() == "hello"
    except WebSocketDisconnect:
        return False


def test_without_a_token_network_addresses_are_refused() -> None:
    client = guarded("http://192.168.1.5:8501", allowed_hosts="192.168.1.5")
    answer = client.get("/api/health")
    assert answer.status_code == 403
    assert "SAE_WORKBENCH_TOKEN" in answer.json()["detail"]


def test_with_a_token_network_addresses_accept_requests_that_carry_it() -> None:
    client = guarded("http://192.168.1.5:8501", token=SecretStr(TOKEN))
    assert client.get("/api/runs", headers=BEARER).status_code == 200
    assert client.get("/api/runs").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer caf\u00e9"},
        {"Cookie": f"{TokenLogin(SecretStr(TOKEN)).cookie_name}={TOKEN}"},
        {"Cookie": f"{TokenLogin(SecretStr(TOKEN)).cookie_name}="},
        {"Cookie": COOKIE},
    ],
)
def test_a_wrong_token_is_refused_by_api_pages_and_sockets(headers: dict[str, str]) -> None:
    client = guarded(token=SecretStr(TOKEN))
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = client.get("/api/runs", headers=raw)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    page = client.get("/?run=a&b=c", headers=raw)
    assert page.status_code == 303
    assert page.headers["location"] == "/login?next=%2F%3Frun%3Da%26b%3Dc"
    assert not connects(client, headers if "caf" not in str(headers) else {})


def test_health_needs_no_token() -> None:
    client = guarded(token=SecretStr(TOKEN))
    assert client.get("/api/health").text == "hello"
    assert client.get("/_stcore/health").text == "hello"


def test_the_login_page_sets_a_cookie_that_authorizes_pages_sockets_and_api() -> None:
    client = guarded(token=SecretStr(TOKEN))
    assert "Access token" in client.get("/login?next=/").text
    wrong = client.post("/login", data={"token": "wrong"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    right = client.post("/login?next=%2F%3Frun%3Da", data={"token": TOKEN})
    assert (right.status_code, right.headers["location"]) == (303, "/?run=a")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in right.headers["set-cookie"]
    assert client.get("/").text == "hello"
    assert client.get("/api/runs").text == "hello"
    assert connects(client, {})


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil", "x"])
def test_the_login_page_redirects_only_to_this_server(target: str) -> None:
    client = guarded(token=SecretStr(TOKEN))
    answer = client.post("/login", params={"next": target}, data={"token": TOKEN})
    assert answer.headers["location"] == "/"


def test_the_login_page_escapes_its_target() -> None:
    client = guarded(token=SecretStr(TOKEN))
    assert "<script>" not in client.get("/login", params={"next": '/"><script>'}).text


def test_an_oversized_login_form_is_refused() -> None:
    client = guarded(token=SecretStr(TOKEN))
    assert client.post("/login", content=b"token=" + b"a" * 20_000).status_code == 413


def test_listening_on_the_network_without_a_token_is_refused(settings: Settings) -> None:
    from rich.console import Console

    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(UserError, match="SAE_WORKBENCH_TOKEN"):
            serve(settings.model_copy(update={"host": host}), Console())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_recognized(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_an_invalid_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_PORT", "many")
    with pytest.raises(UserError, match="SAE_WORKBENCH_PORT = 'many'"):
        load_settings()


@pytest.mark.parametrize("name", ["LABELS_BASE_URL", "RAY_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "localhost:11434", "http://localhost:abc/v1", "http://localhost:99999", "http://h:0/",
        "http://[bad/v1", "http://300.1.1.1/", "http://", "http:///v1", "http://\u200b/",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(f"SAE_WORKBENCH_{name}", url)
    with pytest.raises(UserError, match=f"^SAE_WORKBENCH_{name} = .* is not valid: ") as refused:
        load_settings()
    assert "\n" not in str(refused.value)
    assert "Value error" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:11434/v1", "https://é.example/v1", "http://[::1]:8"]
)
def test_a_usable_url_is_kept(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_LABELS_BASE_URL", url)
    assert load_settings().labels_base_url == url


def test_settings_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SAE_WORKBENCH_READ_DIRS", f"{tmp_path}/a:{tmp_path}/b")
    monkeypatch.setenv("SAE_WORKBENCH_ALLOWED_HOSTS", "A.example,b.example")
    monkeypatch.setenv("SAE_WORKBENCH_TOKEN", TOKEN)
    settings = load_settings(port=9000)
    assert (settings.data_dir, settings.port) == (tmp_path, 9000)
    assert settings.read_dirs == [tmp_path / "a", tmp_path / "b"]
    assert settings.allowed_hosts == ["a.example", "b.example"]
    assert TOKEN not in repr(settings)
    assert "SAE_WORKBENCH_TOKEN" not in settings.environment()


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/health", "/nothing"])
@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_answer_can_be_framed_or_taken_for_another_type(path: str, token: str | None) -> None:
    answers = [guarded(token=token).get(path), guarded(token=token).get(path, headers=BEARER)]
    answers.append(guarded(token=token).get(path, headers={"Host": "evil.example"}))
    for answer in answers:
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "others",
    [
        'prefs={"theme": "dark", "size": 3}',
        "name=two words; _xsrf=2|1:0|10:1",
        'broken="no end',
        "no-value; =no-name; a=b=c",
        "caf\u00e9=\u00fc",
        f"{COOKIE}=of another server; {COOKIE}_00000000=x",
    ],
)
def test_the_cookie_is_found_beside_those_of_other_programs(others: str) -> None:
    login = TokenLogin(SecretStr(TOKEN))
    client = guarded(token=SecretStr(TOKEN))
    sent = client.post("/login", data={"token": TOKEN}).headers["set-cookie"].partition(";")[0]
    assert sent.startswith(f"{login.cookie_name}=")
    for cookies in (f"{others}; {sent}", f"{sent}; {others}"):
        fresh = guarded(token=SecretStr(TOKEN))
        headers = {"Cookie": cookies.encode("latin-1")}
        assert fresh.get("/api/runs", headers=headers).status_code == 200


def test_two_servers_on_one_host_do_not_overwrite_each_others_cookie() -> None:
    names = {TokenLogin(SecretStr(token)).cookie_name for token in ("one", "other")}
    assert len(names) == 2


@pytest.mark.parametrize("token", ["  spaced \n", "caf\u00e9 \u2603", "\tp\u00e4ss\t"])
def test_any_token_can_be_sent_by_client_and_form(token: str) -> None:
    client = guarded(token=SecretStr(token.strip()))
    settings = Settings(data_dir=Path("unused"), token=token)  # pyright: ignore[reportArgumentType]
    assert settings.token is not None
    assert settings.token.get_secret_value() == token.strip()
    bearer = {"Authorization": f"Bearer {token.strip()}".encode()}
    assert client.get("/api/runs", headers=bearer).status_code == 200
    for typed in (token, token.strip()):
        assert client.post("/login", data={"token": typed}).status_code == 303


def test_a_blank_token_is_none() -> None:
    assert Settings(data_dir=Path("unused"), token=" \n ").token is None  # pyright: ignore[reportArgumentType]


def test_wrong_tokens_are_throttled_and_the_right_one_waits_too() -> None:
    client = guarded(token=SecretStr(TOKEN))
    wrong = [client.post("/login", data={"token": "x"}) for _ in range(MAX_WRONG_PER_MINUTE + 2)]
    assert [answer.status_code for answer in wrong[-3:]] == [401, 429, 429]
    assert 1 <= int(wrong[-1].headers["retry-after"]) <= 60
    assert client.post("/login", data={"token": TOKEN}).status_code == 429
    assert client.get("/api/runs", headers=BEARER).status_code == 200


def test_wrong_tokens_in_headers_are_throttled_and_the_right_one_waits_too() -> None:
    client = guarded(token=SecretStr(TOKEN))
    wrong = [
        client.get("/api/runs", headers={"Authorization": f"Bearer {number}"})
        for number in range(MAX_WRONG_PER_MINUTE + 2)
    ]
    assert [answer.status_code for answer in wrong[-3:]] == [401, 429, 429]
    seconds = int(wrong[-1].headers["retry-after"])
    assert 1 <= seconds <= 60
    assert wrong[-1].json()["detail"] == f"Too many wrong tokens; try again in {seconds} s."
    assert client.get("/api/runs", headers=BEARER).status_code == 429
    assert not connects(client, BEARER)
    assert client.get("/api/runs").status_code == 401
    assert client.get("/api/health", headers=BEARER).status_code == 200
    assert client.post("/login", data={"token": TOKEN}).status_code == 303
    assert client.get("/api/runs", headers=BEARER).status_code == 200  # by its cookie


def test_wrong_tokens_of_sockets_are_throttled() -> None:
    client = guarded(token=SecretStr(TOKEN))
    for _ in range(MAX_WRONG_PER_MINUTE):
        assert not connects(client, {"Authorization": "Bearer x"})
    assert client.get("/api/runs", headers={"Authorization": "Bearer x"}).status_code == 429


def test_nobody_waits_for_the_wrong_tokens_of_another_address() -> None:
    app = guard(token=SecretStr(TOKEN))
    here, there = (
        TestClient(app, "http://127.0.0.1:8501", client=(address, 5))
        for address in ("192.168.1.7", "192.168.1.8")
    )
    for _ in range(MAX_WRONG_PER_MINUTE):
        here.get("/api/runs", headers={"Authorization": "Bearer x"})
    assert here.get("/api/runs", headers=BEARER).status_code == 429
    assert there.get("/api/runs", headers=BEARER).status_code == 200


def test_right_tokens_and_other_headers_are_no_wrong_tokens() -> None:
    client = guarded(token=SecretStr(TOKEN))
    for _ in range(MAX_WRONG_PER_MINUTE + 1):
        assert client.get("/api/runs", headers=BEARER).status_code == 200
        assert client.get("/api/runs", headers={"Authorization": "Basic x"}).status_code == 401
        assert client.get("/api/runs", headers={"Cookie": COOKIE}).status_code == 401
    assert client.get("/api/runs", headers=BEARER).status_code == 200


def test_a_request_is_one_try_however_many_tokens_it_carries() -> None:
    client = guarded(token=SecretStr(TOKEN))
    several = [("Authorization", "Bearer x"), ("Authorization", f"Bearer {TOKEN}")]
    assert client.get("/api/runs", headers=several).status_code == 401


@pytest.mark.parametrize("host", ["box.example", "box.example:8443"])
def test_behind_the_documented_proxy_each_visitor_has_a_limit_that_no_header_evades(
    host: str,
) -> None:
    page = (SOURCE_ROOT / "docs" / "containers.md").read_text("utf-8")
    sets = dict(re.findall(r"proxy_set_header (\S+) (\S+);", page))
    app = guard(token=SecretStr(TOKEN), allowed_hosts="box.example")
    upstream = TestClient(
        ProxyHeadersMiddleware(app, "127.0.0.1"),  # pyright: ignore[reportArgumentType]
        f"https://{host}",
        client=("127.0.0.1", 5),
        follow_redirects=False,
    )

    def log_in(visitor: str, token: str, claimed: str) -> int:
        values = {
            "$host": "box.example",
            "$http_host": host,
            "$scheme": "https",
            "$remote_addr": visitor,
            "$proxy_add_x_forwarded_for": f"{claimed}, {visitor}",
        }
        headers = {"Origin": f"https://{host}", "X-Forwarded-For": claimed}
        headers |= {name: values[value] for name, value in sets.items() if value in values}
        return upstream.post("/login", data={"token": token}, headers=headers).status_code

    attempts = [log_in("192.0.2.1", "x", f"198.51.100.{i}") for i in range(MAX_WRONG_PER_MINUTE)]
    assert set(attempts) == {401}
    assert log_in("192.0.2.1", TOKEN, "198.51.100.99") == 429
    assert log_in("192.0.2.2", TOKEN, "192.0.2.1") == 303


@pytest.mark.parametrize("port", ["9" * 5_000, "\u0663\u0664", "-1", "1e3", ""])
def test_an_odd_port_is_refused_or_ignored_but_never_an_error(port: str) -> None:
    raw = {"Host": f"localhost:{port}".encode(), "Origin": b"http://localhost:1"}
    assert guarded().get("/api/runs", headers=raw).status_code in (403, 404)
    raw["Origin"] = f"http://localhost:{port}".encode()
    assert guarded().get("/api/runs", headers=raw).status_code in (200, 403)
