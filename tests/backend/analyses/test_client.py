"""Analyses run once, one at a time, in a process that reports progress and errors and leaves no
orphan.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from backend.analyses.client import Analysis, AnalysisClient, Source
from backend.errors import ConflictError
from backend.settings import Settings
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import AnalysisProgress
from tests.backend.conftest import wait_for
from tests.sae_engine.features.index_reference import build, random_case

SAY = "import json, os, sys, time\ndef say(**m): print(json.dumps(m), flush=True)\n"
PUBLISH = """
os.makedirs(sys.argv[1] + '.tmp')
open(sys.argv[1] + '.tmp/result', 'w').write(str(os.getpid()))
os.rename(sys.argv[1] + '.tmp', sys.argv[1])
"""


def load(folder: Path) -> str:
    text = (folder / "result").read_text()
    if not text:
        raise ValueError("empty")
    return text


class Scripted:
    """A command that runs `script` and records the analyses it was started for."""

    def __init__(self) -> None:
        self.script = PUBLISH
        self.started: list[str] = []

    def __call__(self, analysis: Analysis, target: Path) -> list[str]:
        self.started.append(analysis.name)
        return [sys.executable, "-c", SAY + self.script, str(target)]


@pytest.fixture
def command() -> Scripted:
    return Scripted()


@pytest.fixture
def analyses(settings: Settings, command: Scripted) -> Iterator[AnalysisClient]:
    analyses = AnalysisClient(settings, command=command)
    yield analyses
    analyses.close()


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    indexes = {run: build(tmp_path / run, random_case(3)) for run in ("r1", "r2")}
    return {run: Source(run, FeatureIndex.open(folder)) for run, folder in indexes.items()}


@pytest.fixture
def one(sources: dict[str, Source]) -> Analysis:
    return Analysis("map", (sources["r1"],))


@pytest.fixture
def two(sources: dict[str, Source]) -> Analysis:
    return Analysis("matches", (sources["r1"], sources["r2"]))


def finished(analyses: AnalysisClient, analysis: Analysis) -> str:
    """Ask until the result is ready."""
    found: list[str] = []

    def ask() -> bool:
        answer = analyses.get(analysis, load)
        if isinstance(answer, str):
            found.append(answer)
        return bool(found)

    wait_for(ask)
    return found[0]


def refused(analyses: AnalysisClient, analysis: Analysis) -> str:
    """Ask until the answer is an error; returns its sentence."""
    reasons: list[tuple[str, str]] = []

    def ask() -> bool:
        try:
            analyses.get(analysis, load)
        except ConflictError as error:
            reasons.append((error.kind, error.detail))
        return bool(reasons)

    wait_for(ask)
    kind, detail = reasons[0]
    assert kind == "analysis-failed"
    return detail


def progress(analyses: AnalysisClient, analysis: Analysis) -> AnalysisProgress:
    answer = analyses.get(analysis, load)
    assert isinstance(answer, AnalysisProgress)
    return answer


def test_a_process_whose_result_is_never_asked_for_leaves_no_zombie(
    analyses: AnalysisClient, settings: Settings, one: Analysis
) -> None:
    others = set(psutil.Process().children())
    progress(analyses, one)
    [process] = set(psutil.Process().children()) - others
    wait_for(lambda: not psutil.pid_exists(process.pid))
    assert load(settings.data_dir / "analyses" / one.name) == str(process.pid)


def test_a_result_is_computed_once_and_survives_restarts(
    analyses: AnalysisClient, settings: Settings, command: Scripted, one: Analysis
) -> None:
    assert progress(analyses, one).phase == "starting"
    first = finished(analyses, one)
    assert analyses.get(one, load) == first
    assert AnalysisClient(settings, command=command).get(one, load) == first
    assert len(command.started) == 1


def test_progress_is_the_last_complete_message(
    analyses: AnalysisClient, command: Scripted, one: Analysis
) -> None:
    command.script = "say(phase='near', fraction=0.5); say(phase='far', fraction=None)\n"
    command.script += "print('{\"half', end='', flush=True); time.sleep(60)"
    wait_for(lambda: progress(analyses, one).phase == "far")
    assert progress(analyses, one).fraction is None


def test_one_analysis_runs_at_a_time_and_another_waits_by_asking_again(
    analyses: AnalysisClient, command: Scripted, one: Analysis, two: Analysis, tmp_path: Path
) -> None:
    command.script = (
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n" + PUBLISH
    )
    progress(analyses, one)
    assert progress(analyses, two).phase == "waiting for another computation"
    assert command.started == [one.name]
    (tmp_path / "go").touch()
    assert finished(analyses, two) != finished(analyses, one)
    assert command.started == [one.name, two.name]


def test_a_failure_is_reported_once_and_asking_again_restarts_the_analysis(
    analyses: AnalysisClient, command: Scripted, one: Analysis, two: Analysis
) -> None:
    command.script = "say(phase='x', fraction=0.1); say(error='Too wide.'); sys.exit(1)"
    assert refused(analyses, one) == "Too wide."
    command.script = PUBLISH
    assert finished(analyses, one)
    command.script = "sys.exit(3)"
    assert "exit code 3; the server's log" in refused(analyses, two)


def test_a_failure_is_remembered_while_another_analysis_runs(
    analyses: AnalysisClient, command: Scripted, one: Analysis, two: Analysis
) -> None:
    command.script = "say(error='Too wide.'); sys.exit(1)"
    progress(analyses, one)
    command.script = PUBLISH
    assert finished(analyses, two)
    assert refused(analyses, one) == "Too wide."


def test_a_killed_process_is_reported_with_its_signal(
    analyses: AnalysisClient, command: Scripted, one: Analysis
) -> None:
    command.script = "os.kill(os.getpid(), 9)"
    reason = refused(analyses, one)
    assert reason.startswith("The computation was ended by SIGKILL.")
    assert "memory" in reason


def test_a_command_that_does_not_exist_is_reported(settings: Settings, one: Analysis) -> None:
    analyses = AnalysisClient(settings, command=lambda *_: ["/no/such/program"])
    assert "could not be started" in refused(analyses, one)


def test_a_damaged_result_is_computed_again(
    analyses: AnalysisClient, settings: Settings, one: Analysis
) -> None:
    first = finished(analyses, one)
    [kept] = (settings.data_dir / "analyses").glob("*/result")
    kept.write_text("")
    assert finished(analyses, one) != first


def test_a_snapshot_with_another_sae_is_another_source(tmp_path: Path) -> None:
    names: set[str] = set()
    for weights in (b"weights", b"others"):
        folder = build(
            tmp_path, random_case(3), write_sae=lambda path, w=weights: path.write_bytes(w)
        )
        names.add(Source("r1", FeatureIndex.open(folder)).name)
    assert len(names) == 2


def test_forgetting_a_run_deletes_its_results(
    analyses: AnalysisClient, settings: Settings, sources: dict[str, Source], two: Analysis
) -> None:
    other = Analysis("map", (sources["r2"],))
    finished(analyses, two)
    finished(analyses, other)
    analyses.forget("r1")
    assert [path.name for path in (settings.data_dir / "analyses").iterdir()] == [other.name]


def test_forgetting_a_run_ends_its_running_analysis(
    analyses: AnalysisClient, command: Scripted, one: Analysis, sources: dict[str, Source]
) -> None:
    command.script = "say(phase=str(os.getpid()), fraction=None); time.sleep(600)"
    pid = running_pid(analyses, one)
    analyses.forget("r2")
    assert psutil.pid_exists(pid)
    analyses.forget("r1")
    assert not psutil.pid_exists(pid)


def running_pid(analyses: AnalysisClient, analysis: Analysis) -> int:
    wait_for(lambda: progress(analyses, analysis).phase.isdecimal())
    return int(progress(analyses, analysis).phase)


def test_closing_kills_a_process_that_ignores_sigterm(
    analyses: AnalysisClient, command: Scripted, one: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.analyses.client.END_SECONDS", 0.2)
    command.script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    command.script += "say(phase=str(os.getpid()), fraction=None); time.sleep(600)"
    pid = running_pid(analyses, one)
    analyses.close()
    assert not psutil.pid_exists(pid)


def test_the_worker_ends_when_its_server_is_killed(tmp_path: Path) -> None:
    """A stand-in for the server starts it like `AnalysisClient`, on an SAE whose file is a pipe, so
    that it never finishes.
    """
    (tmp_path / "index").mkdir()
    os.mkfifo(tmp_path / "index/sae.safetensors")
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                import subprocess, sys, time
                worker = [sys.executable, "-m", "backend.analyses.worker"]
                command = [*worker, "matches", *sys.argv[1:]]
                child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
                print(child.pid, flush=True)
                time.sleep(600)
            """),
            str(tmp_path / "target"),
            *[str(tmp_path / "index")] * 2,
        ],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert server.stdout is not None
    with server.stdout:
        child = psutil.Process(int(server.stdout.readline()))
    try:
        wait_for(lambda: any("libtorch" in m.path for m in child.memory_maps()))
        server.kill()
        server.wait()
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        server.kill()
        if child.is_running():
            child.kill()
