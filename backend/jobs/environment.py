"""What a run was started with: the program's commit, versions of its libraries, the machine.

Written next to the run by `execution`; read by `routes`. Imports no torch.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from backend.jobs.devices import gpus
from backend.jobs.machine import memory, num_cpus
from backend.version import VERSION
from sae_engine.files import RunFolder, published_file
from sae_engine.schema.machine import Environment

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
GIT_SECONDS = 5
CPU_INFO = Path("/proc/cpuinfo")


def this_environment() -> Environment:
    """Of this process."""
    return Environment(
        recorded_at=datetime.now(UTC),
        version=VERSION,
        commit=commit(Path(__file__).resolve().parents[2]),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        hostname=platform.node(),
        system=platform.platform(),
        cpu=_cpu_name(),
        num_cpus=num_cpus(),
        memory_bytes=memory().total,
        gpus=[gpu.name for gpu in gpus()],
    )


def record_environment(folder: RunFolder, environment: Environment) -> None:
    """Write it next to the run, replacing that of an earlier start; raises `DiskFullError`."""
    with published_file(folder.environment) as path:
        path.write_text(environment.model_dump_json(indent=2), "utf-8")


def recorded_environment(folder: RunFolder) -> Environment | None:
    """What was written at the run's last start; None if it is missing or of another version."""
    try:
        return Environment.model_validate_json(folder.environment.read_bytes())
    except (OSError, ValidationError):
        return None


@cache
def commit(checkout: Path) -> str | None:
    """The commit of a git checkout, with `-dirty` if its files were changed; None elsewhere."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(
            [*command, "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
            env=quiet,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = CPU_INFO.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
