"""What an installation brings is declared, pinned, and no more than each part needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    distributions,
    packages_distributions,
)
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.repository import ROOT, tracked_files

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
_NAME: str = _PROJECT["project"]["name"]
_DEPENDENCIES: list[str] = _PROJECT["project"]["dependencies"]
_EXTRAS: dict[str, list[str]] = _PROJECT["project"]["optional-dependencies"]
_FRONTEND: list[str] = _PROJECT["dependency-groups"]["frontend"]
_PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
)
_OPTIONAL = {"triton"}
"""Used where a CUDA build of torch has brought it."""
_ROOMS = {
    "sae_engine": [*_DEPENDENCIES, *_EXTRAS["map"], *_EXTRAS["tracking"]],
    "backend": [*_DEPENDENCIES, *_EXTRAS["app"]],
    "frontend": _FRONTEND,
}
"""What the modules of each package may import."""
_ALL = [
    text
    for text in (*_DEPENDENCIES, *(text for extra in _EXTRAS.values() for text in extra))
    if Requirement(text).name != _NAME
]


def _names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def _closure(requirements: list[str]) -> set[str]:
    """Names of all packages that `requirements` bring, of which those not installed bring none."""
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


def _imported_packages(room: str) -> Iterator[tuple[Path, str]]:
    """Pairs of a source file and a third-party top-level package that it imports."""
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[0] == room:
            for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                for name in names:
                    package = name.partition(".")[0]
                    if package not in sys.stdlib_module_names and package not in _ROOMS:
                        yield path, package


@pytest.mark.parametrize("room", _ROOMS)
def test_every_imported_package_is_a_declared_dependency(room: str) -> None:
    declared = _names(_ROOMS[room]) | _OPTIONAL
    providers = packages_distributions()
    missing = {
        f"{path} imports {package}"
        for path, package in _imported_packages(room)
        if declared.isdisjoint(map(canonicalize_name, providers.get(package, [package])))
    }
    assert missing == set()


def test_the_engine_alone_brings_no_server_no_pages_and_no_map() -> None:
    apart = {"fastapi", "streamlit", "sqlalchemy", "psycopg", "umap-learn", "openai", "plotly"}
    assert _closure(_DEPENDENCIES) & apart == set()


def test_the_pages_need_nothing_that_the_program_does_not_bring() -> None:
    assert set(_FRONTEND) <= {*_DEPENDENCIES, *_EXTRAS["app"]}


def test_development_installs_every_extra_but_that_of_a_cluster() -> None:
    (own,) = [r for r in map(Requirement, _EXTRAS["dev"]) if r.name == _NAME]
    assert own.extras == set(_EXTRAS) - {"dev", "ray"}


def test_every_package_that_an_installation_brings_is_pinned() -> None:
    # A CUDA build of torch brings its own libraries, which differ from machine to machine.
    brought = {n for n in _closure(_ALL) if not n.startswith(("nvidia-", "cuda-"))}
    assert (brought | _names(_ALL)) - set(_PINS) == set()


def test_a_pin_is_a_name_and_a_release_and_nothing_else() -> None:
    for name, release in _PINS.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)*", release), name


def test_the_tests_run_with_the_pinned_versions() -> None:
    installed: dict[str, str] = {}
    for found in distributions():  # the first is the one that is imported
        installed.setdefault(canonicalize_name(found.name), found.version)
    pinned = {name: release for name, release in _PINS.items() if name in installed}
    assert len(pinned) > 100
    assert {name: installed[name].partition("+")[0] for name in pinned} == pinned


@pytest.mark.parametrize("text", _ALL)
def test_a_pin_satisfies_its_requirement(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(_PINS[canonicalize_name(requirement.name)])


_WITH_ONLY = """
import sys

class Only:
    def __init__(self, finder, allowed):
        self.finder, self.allowed = finder, allowed
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in self.allowed or package[0] == "_":
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Only(finder, set(sys.argv[1].split(","))) for finder in sys.meta_path]
"""
_IMPORT_ALL = """
import importlib, pkgutil
room = importlib.import_module(sys.argv[2])
for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
    if module.name != "frontend.app":
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
"""


def _python_with_only(
    requirements: list[str], code: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a process that finds the packages that `requirements` bring, and no others."""
    brought = _closure(requirements) | _OPTIONAL
    packages = {
        package
        for package, providers in packages_distributions().items()
        if not brought.isdisjoint(map(canonicalize_name, providers))
    }
    allowed = ",".join(packages | set(_ROOMS))
    return subprocess.run(
        [sys.executable, "-c", _WITH_ONLY + code, allowed, *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("room", ["sae_engine", "frontend"])
def test_a_package_imports_with_its_own_dependencies_alone(room: str) -> None:
    """The engine as an installed library, and the pages in their image."""
    requirements = _FRONTEND if room == "frontend" else _DEPENDENCIES
    assert ("torch" in _closure(requirements)) == (room == "sae_engine")
    done = _python_with_only(requirements, _IMPORT_ALL, room)
    assert done.returncode == 0, done.stderr


_UP = """
from backend.cli.__main__ import main
sys.argv[1:] = ["up", "--port", "0"]
sys.exit(main())
"""
_MAP = """
import torch
from sae_engine.errors import UserError
from sae_engine.features.geometry.layout import map_of
try:
    map_of(torch.nn.functional.normalize(torch.randn(40, 8), dim=1))
except UserError as error:
    sys.exit(str(error))
"""
_POSTGRESQL = """
from backend.store.database import Database
from sae_engine.errors import UserError
try:
    Database("postgresql://user@127.0.0.1/name")
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("code", "brought", "extra"),
    [
        (_UP, _DEPENDENCIES, "app"),
        (_MAP, _DEPENDENCIES, "map"),
        (_POSTGRESQL, [*_DEPENDENCIES, *_EXTRAS["app"]], "postgresql"),
    ],
    ids=["the program", "the map", "postgresql"],
)
def test_what_needs_a_missing_extra_says_so_in_one_sentence(
    code: str, brought: list[str], extra: str
) -> None:
    done = _python_with_only(brought, code)
    assert done.returncode != 0
    assert f"pip install 'sae-workbench[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
