"""A wheel, installed outside the checkout, trains and serves: it holds every file it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.house.repository import ROOT, tracked_files

_PACKAGES = {"sae_engine": "sae_engine", "backend": "backend", "frontend": "frontend"}
_PACKAGES["data/tiny_gemma2"] = "sae_engine/tiny_gemma2"
"""Folders of the checkout and where their files are in the wheel."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed into."""
    source, wheels, target = (tmp_path_factory.mktemp(n) for n in ("source", "wheels", "target"))
    for path in tracked_files():  # a build leaves files beside its source
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    building = [*pip, "wheel", *options, "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run(building, check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", *options, "--target", target, wheel], check=True)
    return target


@pytest.fixture
def environment(installed: Path, tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(installed),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SAE_WORKBENCH_DATA_DIR": str(tmp_path / "data"),
    }


def _command(*arguments: str) -> list[str]:
    """A command of the installed package; fails if the package of the checkout is imported."""
    code = "import sys, sae_engine, backend.cli.main as cli, frontend\n"
    code += "folder, *arguments = sys.argv[1:]\n"
    code += "assert all(m.__file__.startswith(folder) for m in (sae_engine, cli, frontend))\n"
    code += "sys.exit(cli.main(arguments))"
    return [sys.executable, "-c", code, *arguments]


def test_every_tracked_file_of_the_packages_is_in_the_wheel(installed: Path) -> None:
    expected = {
        Path(place) / path.relative_to(folder)
        for folder, place in _PACKAGES.items()
        for path in tracked_files()
        if path.is_relative_to(folder)
    }
    assert {str(path) for path in expected if not (installed / path).is_file()} == set()


_SHORT = (
    *("--train.total_tokens", "5120", "--data.heldout_tokens", "1000"),
    *("--index.tokens", "1000", "--index.snapshot_tokens", "1000"),
)
_COUNT_COMPILATIONS = """
import torch
from sae_engine.kernels.cpu import candidates, codes, rows, search, vectors
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.inference import open_coder

sae = TopKSAE(4, 32, 2)
sae.initialize_(0, torch.zeros(4))
open_coder(sae).encode(torch.randn(8, 4))
kernels = [k for m in (candidates, codes, rows, search, vectors) for k in vars(m).values()]
stats = [kernel.stats for kernel in kernels if hasattr(kernel, "stats")]
print(*(sum(count.total() for count in counts) for counts in (
    [s.cache_hits for s in stats], [s.cache_misses for s in stats]
)))
"""


def test_an_installed_wheel_trains_and_compiles_its_kernels_once_outside_the_library(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    files = sorted(installed.rglob("*"))
    command = _command(str(installed), "train", "quick-test", *_SHORT)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("data/runs/*/sae.safetensors"))
    second = [sys.executable, "-c", _COUNT_COMPILATIONS]
    counts = subprocess.run(second, cwd=tmp_path, env=environment, capture_output=True, check=True)
    loaded, compiled = map(int, counts.stdout.split())
    assert loaded > 5
    assert compiled == 0
    assert sorted(installed.rglob("*")) == files


def test_an_installed_wheel_serves_pages_and_rest(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        _command(str(installed), "up", "--port", "0"),
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            url = next(filter(None, (re.search(r"http://\S+:\d+", s) for s in server.stdout)))[0]
            transport = httpx.HTTPTransport(retries=8)  # until the port is open
            with httpx.Client(base_url=url, transport=transport, timeout=30) as client:
                assert client.get("/api/health").json()["status"] == "ok"
                assert client.get("/").is_success
                assert "tiny" in {p["name"] for p in client.get("/api/config/presets").json()}
                estimate = client.post("/api/config/estimate", json={"preset": "tiny"})
                assert estimate.is_success, "reads the embedded model's config.json"
        finally:
            server.kill()
