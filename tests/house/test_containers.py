"""The containers' files are valid, without a container engine to try them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.repository import ROOT, tracked_files

_COMPOSE_FILES = ["docker-compose.yml", "docker/gpu.yml"]
_DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
_SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))[
    "services"
]


def _passes(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", _COMPOSE_FILES)
def test_a_compose_file_follows_the_compose_specification(file: str) -> None:
    _passes(
        *(sys.executable, "-m", "check_jsonschema"),
        *("--builtin-schema", "vendor.compose-spec", file),
    )


@pytest.mark.parametrize("dockerfile", _DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_passes_the_linter(dockerfile: Path) -> None:
    _passes(Path(sys.executable).with_name("hadolint"), dockerfile)


@pytest.mark.parametrize("dockerfile", _DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_only_what_is_tracked_and_sent_to_the_engine(dockerfile: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sent = [Path(line[1:]) for line in ignore if line.startswith("!")]
    tracked = tracked_files()
    for line in re.findall(r"^COPY (.+)$", dockerfile.read_text("utf-8"), re.MULTILINE):
        for source in map(Path, line.split()[:-1]):
            assert any(path.is_relative_to(source) for path in tracked), source
            assert any(source.is_relative_to(path) for path in sent), source


@pytest.mark.parametrize("dockerfile", _DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_an_ordinary_user_and_reports_its_health(dockerfile: Path) -> None:
    text = dockerfile.read_text("utf-8")
    users = re.findall(r"^USER (.+)$", text, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize("service", _SERVICES)
def test_a_service_is_built_from_a_file_that_exists_and_published_on_loopback_only(
    service: str,
) -> None:
    assert (ROOT / _SERVICES[service]["build"]["dockerfile"]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in _SERVICES[service]["ports"])


def test_the_containers_do_not_start_without_a_token() -> None:
    token = _SERVICES["backend"]["environment"]["SAE_WORKBENCH_TOKEN"]
    assert token.startswith("${SAE_WORKBENCH_TOKEN:?")
    assert _SERVICES["frontend"]["environment"]["SAE_WORKBENCH_TOKEN"] == token


def test_the_pages_find_the_api_under_a_name_that_it_answers_to() -> None:
    url = _SERVICES["frontend"]["environment"]["SAE_WORKBENCH_API_URL"]
    assert url == "http://backend:8000"
    assert _SERVICES["backend"]["environment"]["SAE_WORKBENCH_ALLOWED_HOSTS"] == "backend"
