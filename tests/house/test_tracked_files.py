"""What no file in the repository may contain."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.house.repository import ROOT, tracked_files

# Assembled from pieces, so that this file does not hold what it forbids.
_REGISTRIES = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "download.pytorch" + ".org",
    "registry.npmjs" + ".org",
    "deb.debian" + ".org",
    "registry.yarnpkg" + ".com",
]
_MACHINE_PATHS = [
    "/ho" + r"me/(?!workbench\b)\w+",
    "/ro" + r"ot/(?!\.cache/pip)",
    "/wo" + "rk/",
    "/Us" + r"ers/\w+",
]
_BINARY = {".png", ".safetensors", ".ico", ".woff2", ".npy", ".parquet"}
_MAX_BYTES = 20_000_000


@pytest.mark.parametrize("pattern", [re.escape(host) for host in _REGISTRIES] + _MACHINE_PATHS)
def test_no_file_names_a_registry_host_or_a_path_of_one_machine(pattern: str) -> None:
    expression = re.compile(pattern)
    texts = (path for path in tracked_files() if path.suffix not in _BINARY)
    found = [str(path) for path in texts if expression.search((ROOT / path).read_text("utf-8"))]
    assert found == []


def test_no_file_is_larger_than_the_embedded_model_may_be() -> None:
    large = [str(path) for path in tracked_files() if (ROOT / path).stat().st_size > _MAX_BYTES]
    assert large == []


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("data/tiny_gemma2/model.safetensors", False),
        ("data/tiny_gemma2/train.py", False),
        ("data/another_model/config.json", False),
        ("sae_engine/data/source.py", False),
        ("data/local/workbench.db", True),
        (".venv/bin/python", True),
    ],
)
def test_git_ignores_a_users_runs_but_no_source_under_data(path: str, ignored: bool) -> None:
    answer = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT)
    assert (answer.returncode == 0) == ignored
