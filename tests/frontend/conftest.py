"""A fake API on a free port of the loopback, and the pages run against it without a browser."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import streamlit as st
import uvicorn
from streamlit.testing.v1 import AppTest

from frontend.api import cache as pages_server
from tests.frontend.fake_api import create_app
from tests.frontend.fake_world import World

APP = Path(__file__).parents[2] / "frontend" / "app.py"


class FakeServer(NamedTuple):
    """A running fake API and the world behind it."""

    url: str
    world: World


def serve(world: World, token: str | None = None) -> Iterator[FakeServer]:
    """Serve `world` until the generator is closed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(world, token), log_config=None, access_log=False, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the fake API did not start"
            time.sleep(0.01)
        try:
            yield FakeServer(f"http://127.0.0.1:{listener.getsockname()[1]}", world)
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@pytest.fixture
def world() -> World:
    """The runs that the fake API knows; a test may change them."""
    return World()


@pytest.fixture
def server(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """The fake API, found by the pages through the environment."""
    for running in serve(world):
        monkeypatch.setenv("SAE_WORKBENCH_API_URL", running.url)
        st.cache_data.clear()
        st.cache_resource.clear()
        yield running
        pages_server.client().close()
        st.cache_resource.clear()


@pytest.fixture
def open_page(server: FakeServer) -> Callable[..., AppTest]:
    """Open a page by its file's name with the values of its URL."""

    def open_it(page: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=60)
        if page != "runs":
            app.run()
            app.switch_page(f"views/{page}.py")
        for name, value in query.items():
            app.query_params[name] = value
        return app.run()

    return open_it
