"""The container files are valid, as far as that can be checked without a container engine."""

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
def test_a_dockerfile_copies_only_tracked_files_of_the_build_context(dockerfile: Path) -> None:
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


def test_the_backend_compiles_kernels_into_a_cache_that_its_user_can_write() -> None:
    lines = (ROOT / "docker/backend.Dockerfile").read_text("utf-8").splitlines()
    compiling = lines.index("RUN python -m sae_engine.compile_kernels")
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", "\n".join(lines[:compiling]))
    assert any(line.startswith("USER ") for line in lines[:compiling])
    assert not any(line.startswith("USER ") for line in lines[compiling:])
    assert re.search(rf"-o workbench .*\n? .*{cache}\b", "\n".join(lines[:compiling]))
    mounted = [volume.split(":")[1] for volume in _SERVICES["backend"]["volumes"]]
    assert not any(Path(cache, "sae-workbench").is_relative_to(folder) for folder in mounted)


@pytest.mark.parametrize("service", _SERVICES)
def test_a_service_is_built_from_a_dockerfile_and_published_on_loopback_only(
    service: str,
) -> None:
    build = _SERVICES[service].get("build")
    assert build is None or (ROOT / build["dockerfile"]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in _SERVICES[service].get("ports", ()))


def test_services_of_a_cluster_start_only_on_demand_and_share_its_secrets() -> None:
    cluster = {name for name, service in _SERVICES.items() if "profiles" in service}
    assert cluster == {"postgres", "ray-head", "ray-worker"}
    assert all(_SERVICES[name]["profiles"] == ["cluster"] for name in cluster)
    backend = _SERVICES["backend"]["environment"]
    ray = _SERVICES["ray-worker"]["environment"]
    assert ray["RAY_AUTH_MODE"] == "token"
    assert ray["RAY_AUTH_TOKEN"] == backend["SAE_WORKBENCH_RAY_TOKEN"]
    assert ray["SAE_WORKBENCH_DATABASE_URL"] == backend["SAE_WORKBENCH_DATABASE_URL"]
    assert _SERVICES["ray-worker"]["volumes"] == _SERVICES["backend"]["volumes"]
    named = (ROOT / "docker/cluster.env").read_text("utf-8")
    assert "@postgres/" in named
    assert "http://ray-head:8265" in named


def test_the_containers_do_not_start_without_a_token() -> None:
    token = _SERVICES["backend"]["environment"]["SAE_WORKBENCH_TOKEN"]
    assert token.startswith("${SAE_WORKBENCH_TOKEN:?")
    assert _SERVICES["frontend"]["environment"]["SAE_WORKBENCH_TOKEN"] == token


def test_the_pages_reach_the_api_under_an_allowed_host_name() -> None:
    url = _SERVICES["frontend"]["environment"]["SAE_WORKBENCH_API_URL"]
    assert url == "http://backend:8000"
    assert _SERVICES["backend"]["environment"]["SAE_WORKBENCH_ALLOWED_HOSTS"] == "backend"
