"""What an installation brings is declared, pinned, and no more than each part needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    distributions,
    packages_distributions,
)

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

from tests.house.repository import ROOT, tracked_files

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
_DEPENDENCIES: list[str] = _PROJECT["project"]["dependencies"]
_EXTRAS: dict[str, list[str]] = _PROJECT["project"]["optional-dependencies"]
_FRONTEND: list[str] = _PROJECT["dependency-groups"]["frontend"]
_PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
)
_ROOMS = {"sae_engine", "backend", "frontend"}


def _closure(requirements: list[str]) -> set[str]:
    """Names of everything that `requirements` bring on this machine, as far as it is installed."""
    found: set[tuple[str, str]] = set()
    pending = [(Requirement(text), "") for text in requirements]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in requirement.extras | {""}:
            key = (canonicalize_name(requirement.name), wanted)
            if key in found:
                continue
            found.add(key)
            try:
                needs = distribution(requirement.name).requires or []
            except PackageNotFoundError:
                continue
            pending += [(Requirement(text), wanted) for text in needs]
    return {name for name, _ in found}


def _imported_packages() -> Iterator[tuple[str, str]]:
    """Pairs of a source file and a third-party top-level package that it imports."""
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[0] in _ROOMS:
            for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                for name in names:
                    package = name.partition(".")[0]
                    if package not in sys.stdlib_module_names | _ROOMS:
                        yield str(path), package


def test_every_package_that_the_source_imports_is_a_declared_dependency() -> None:
    optional = [*_DEPENDENCIES, *_EXTRAS["tracking"]]
    declared = {canonicalize_name(Requirement(text).name) for text in optional}
    declared.add("triton")  # used where a CUDA build of torch has brought it
    providers = packages_distributions()
    missing = {
        f"{path} imports {package}"
        for path, package in _imported_packages()
        if declared.isdisjoint(map(canonicalize_name, providers.get(package, [package])))
    }
    assert missing == set()


def test_every_package_that_an_installation_brings_is_pinned() -> None:
    brought = _closure([*_DEPENDENCIES, *(text for extra in _EXTRAS.values() for text in extra)])
    # A CUDA build of torch brings its own libraries, which differ from machine to machine.
    own = {name for name in brought if name.startswith(("nvidia-", "cuda-"))}
    assert brought - own - set(_PINS) == set()


def test_a_pin_is_a_name_and_a_release_and_nothing_else() -> None:
    for name, release in _PINS.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)*", release), name


def test_the_tests_run_with_what_is_pinned() -> None:
    installed: dict[str, str] = {}
    for found in distributions():  # the first is the one that is imported
        installed.setdefault(canonicalize_name(found.name), found.version)
    pinned = {name: release for name, release in _PINS.items() if name in installed}
    assert len(pinned) > 100
    assert {name: installed[name].partition("+")[0] for name in pinned} == pinned


@pytest.mark.parametrize("text", [*_DEPENDENCIES, *(t for e in _EXTRAS.values() for t in e)])
def test_a_pin_satisfies_its_requirement(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(_PINS[canonicalize_name(requirement.name)])


def test_every_module_lies_in_a_package_that_the_wheel_contains() -> None:
    include = _PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = set(find_packages(str(ROOT), include=include))
    folders = {p.parent for p in tracked_files() if p.suffix == ".py" and p.parts[0] in _ROOMS}
    assert {".".join(folder.parts) for folder in folders} - packages == set()
    assert "backend.migrations.versions" in packages


def test_the_pages_need_nothing_that_the_project_does_not_declare() -> None:
    assert set(_FRONTEND) <= set(_DEPENDENCIES)


_IMPORT_WITH_ONLY = """
import importlib, pkgutil, sys

class Absent:
    allowed = set(sys.argv[1].split(","))
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in self.allowed or package[0] == "_":
            return None
        raise ModuleNotFoundError(f"{name} is not part of the pages' installation", name=name)

sys.meta_path.insert(0, Absent())
import frontend
for module in pkgutil.walk_packages(frontend.__path__, "frontend."):
    if module.name != "frontend.app" and ".pages." not in module.name:
        importlib.import_module(module.name)
"""


def test_the_pages_modules_import_with_the_packages_of_their_image_alone() -> None:
    brought = _closure(_FRONTEND)
    packages = {
        package
        for package, providers in packages_distributions().items()
        if not brought.isdisjoint(map(canonicalize_name, providers))
    }
    assert "torch" not in packages
    allowed = ",".join(packages | {"frontend", "sae_engine"})
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_WITH_ONLY, allowed], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
