"""The rules about who may import whom hold, and would be broken by the imports they are against."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.repository import ROOT, tracked_files

_ROOMS = ("sae_engine", "backend", "frontend")
_LINTER = Path(sys.executable).with_name("lint-imports")

# Contract -> a file and an import that the contract forbids there.
_VIOLATIONS = {
    "Frontend and backend never import each other": (
        "frontend/api/client.py",
        "backend.store.database",
    ),
    "The engine works alone as a library": ("sae_engine/sae/loss.py", "backend.store.database"),
    "The frontend takes from the engine only its vocabulary": (
        "frontend/api/client.py",
        "sae_engine.files",
    ),
    "The vocabulary imports nothing else of the project": (
        "sae_engine/schema/features.py",
        "numpy",
    ),
    "The web process and the pages reach no torch": (
        "backend/store/database.py",
        "sae_engine.sae.autoencoders",
    ),
    "Only the language model imports nnsight": ("sae_engine/training/evaluate.py", "nnsight"),
    "The engine's layers": ("sae_engine/kernels/__init__.py", "sae_engine.training.loop"),
}


def _broken_contracts(root: Path) -> set[str]:
    done = subprocess.run(
        [_LINTER, "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    results = re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    assert results, done.stdout + done.stderr
    return {name.strip() for name, result in results if result == "BROKEN"}


def _contracts() -> list[str]:
    return re.findall(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1:]


def test_no_contract_is_broken() -> None:
    assert _broken_contracts(ROOT) == set()


def test_every_contract_would_notice_a_violation(tmp_path: Path) -> None:
    for path in tracked_files():
        if path.parts[0] in _ROOMS and path.suffix == ".py":
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tmp_path / path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, forbidden in _VIOLATIONS.values():
        with (tmp_path / file).open("a", encoding="utf-8") as source:
            source.write(f"\nimport {forbidden}\n")
    assert _broken_contracts(tmp_path) == set(_VIOLATIONS) == set(_contracts())


@pytest.mark.parametrize(
    "module",
    [
        "backend.app",
        "backend.jobs.supervisor",
        "backend.cli.main",
        "sae_engine.preflight",
        "sae_engine.features.index.reader",
        "frontend.api.client",
    ],
)
def test_importing_it_loads_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "print(*{'torch', 'nnsight', 'transformers'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
