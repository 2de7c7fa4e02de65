"""An undisturbed run to compare disturbed ones with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.chaos.workbench import QUICK, ROUNDS, Workbench, opened

collect_ignore = [] if ROUNDS > 3 else ["test_cluster.py"]
"""Only in `make chaos`, because a cluster on two cores takes minutes to start."""


class Twin(NamedTuple):
    """A finished run and its server."""

    workbench: Workbench
    run_id: str


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    with opened(tmp_path_factory.mktemp("twin") / "data", QUICK) as workbench:
        run_id = workbench.create("undisturbed")
        workbench.wait_for_status(run_id, "finished")
        yield Twin(workbench, run_id)
