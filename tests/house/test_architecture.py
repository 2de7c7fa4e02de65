"""The import rules hold, and detect the imports they forbid."""

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
    "The engine's wings are layers": ("sae_engine/kernels/__init__.py", "sae_engine.training.loop"),
    "The backend's wings are layers": ("backend/store/common.py", "backend.jobs.logs"),
    "The frontend's wings are layers": ("frontend/html/format.py", "frontend.shell.url"),
    "Inside a wing nothing is imported in a circle": (
        "sae_engine/text/stdlib.py",
        "sae_engine.text.packing",
    ),
}


def _lint(root: Path) -> str:
    done = subprocess.run(
        [_LINTER, "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def _broken_contracts(root: Path) -> set[str]:
    printed = _lint(root)
    results = re.findall(r"^(.+) (KEPT|BROKEN)\b", printed, re.MULTILINE)
    assert results, printed
    return {name.strip() for name, result in results if result == "BROKEN"}


def _contracts() -> list[str]:
    return re.findall(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1:]


def _modules() -> list[Path]:
    return [p for p in tracked_files() if p.parts[0] in _ROOMS and p.suffix == ".py"]


def test_no_contract_is_broken() -> None:
    assert _broken_contracts(ROOT) == set()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the source and its contracts."""
    for path in _modules():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_notices_a_violation(copied: Path) -> None:
    for file, forbidden in _VIOLATIONS.values():
        with (copied / file).open("a", encoding="utf-8") as source:
            source.write(f"\nimport {forbidden}\n")
    assert _broken_contracts(copied) == set(_VIOLATIONS) == set(_contracts())


def test_import_cycles_are_detected_in_every_wing(copied: Path) -> None:
    reversed_in: set[str] = set()
    for path in _modules():
        name = ".".join(path.with_suffix("").parts)
        wing = name.rpartition(".")[0]
        found = re.search(
            rf"^from ({re.escape(wing)}\.\w+) import", (ROOT / path).read_text(), re.M
        )
        if found and path.name != "__init__.py" and wing not in reversed_in:
            imported = copied / Path(*found[1].split(".")).with_suffix(".py")
            if imported.is_file():
                with imported.open("a", encoding="utf-8") as source:
                    source.write(f"\nimport {name}\n")
                reversed_in.add(wing)
    assert len(reversed_in) > 20
    printed = " ".join(_lint(copied).split())
    assert {wing for wing in reversed_in if f"in {wing}" not in printed} == set()


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
