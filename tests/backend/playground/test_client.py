"""The language-model process starts with a question and ends with its server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest

from backend.errors import ApiError, ConflictError, FailedError, UnavailableError
from backend.playground.client import GRACE_SECONDS, MAX_WAITING, STARTING, PlaygroundClient
from backend.settings import Settings
from sae_engine.schema.playground import SteerPhase, SteerToken, TextReading
from tests.backend.conftest import wait_for
from tests.backend.fake_inference import FAKE_INFERENCE, read_task, steer_task

Open = Callable[..., PlaygroundClient]


@pytest.fixture
def open_process(settings: Settings) -> Iterator[Open]:
    settings.data_dir.mkdir()
    opened: list[PlaygroundClient] = []

    def open_it(
        idle_seconds: float = 600,
        command: tuple[str, ...] = FAKE_INFERENCE,
        niceness: int = 0,
        send_seconds: float = 60,
    ) -> PlaygroundClient:
        update = {"inference_idle_seconds": idle_seconds, "niceness": niceness}
        changed = settings.model_copy(update=update)
        opened.append(PlaygroundClient(changed, command, send_seconds))
        return opened[-1]

    yield open_it
    for process in opened:
        process.close()
        assert process.status().state == "off"


@pytest.fixture
def model(open_process: Open) -> PlaygroundClient:
    return open_process()


def pid_of(model: PlaygroundClient) -> int:
    """The fake process answers with its pid."""
    [reading] = [p for p in model.ask(read_task("who")) if isinstance(p, TextReading)]
    return int(reading.tokens[0].text)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_first_question_starts_the_process_and_later_ones_reuse_it(
    model: PlaygroundClient,
) -> None:
    assert model.status().state == "off"
    first = pid_of(model)
    assert model.status().state == "ready"
    assert pid_of(model) == first != os.getpid()


def test_a_steered_answer_arrives_token_by_token(model: PlaygroundClient) -> None:
    parts = [p for p in model.ask(steer_task("go", 2)) if isinstance(p, SteerToken)]
    assert [(p.side, p.text) for p in parts] == [
        ("plain", "p0"),
        ("steered", "s0"),
        ("plain", "p1"),
        ("steered", "s1"),
    ]


def test_phases_are_reported_while_the_model_is_loading(
    model: PlaygroundClient, tmp_path: Path
) -> None:
    gate, phases = tmp_path / "gate", list[str]()
    for part in model.ask(read_task(f"load {gate}")):
        if isinstance(part, SteerPhase) and not gate.exists():
            phases.append(part.phase)
            status = model.status()
            assert (status.state, status.waiting) == ("warming-up", 1)
            if part.phase != STARTING:
                assert status.phase == part.phase
                gate.touch()
    loading = "loading the fake model"
    assert phases[-1] == loading  # a fast start may be over before the first reply
    assert set(phases[:-1]) <= {STARTING, loading}
    assert model.status().state == "ready"


@pytest.mark.parametrize(
    ("text", "name", "kind", "error", "words"),
    [
        ("refuse", "tiny-gemma2", "invalid", ApiError, "The text is invalid; give another."),
        ("read", "absent", "model-unavailable", ConflictError, "There is no model 'absent'."),
        ("break", "tiny-gemma2", "internal", FailedError, "ZeroDivisionError: a bug"),
    ],
)
def test_a_question_that_fails_leaves_the_process_running(
    model: PlaygroundClient, settings: Settings, text: str, name: str, kind: str, error, words: str
) -> None:
    pid = pid_of(model)
    with pytest.raises(error, match=words) as raised:
        list(model.ask(read_task(text, name)))
    assert raised.value.kind == kind
    assert pid_of(model) == pid
    said = settings.inference_log.read_text()
    assert ("ZeroDivisionError: a bug\nin two lines" in said) == (text == "break")


@pytest.mark.parametrize(("text", "how"), [("die", "SIGKILL, often"), ("exit", "code 7")])
def test_a_process_that_dies_is_reported_and_the_next_question_starts_another(
    model: PlaygroundClient, text: str, how: str
) -> None:
    pid = pid_of(model)
    with pytest.raises(UnavailableError, match=f"was ended by .*{how}"):
        list(model.ask(read_task(text)))
    assert pid_of(model) != pid


def test_printed_output_goes_to_the_log_and_not_to_the_replies(
    model: PlaygroundClient, settings: Settings
) -> None:
    [reading] = [p for p in model.ask(read_task("print")) if isinstance(p, TextReading)]
    assert int(reading.tokens[0].text) == pid_of(model)
    assert "noise" in settings.inference_log.read_text()


def test_an_idle_process_ends_and_a_question_starts_another(open_process: Open) -> None:
    model = open_process(idle_seconds=0.2)
    pid = pid_of(model)
    wait_for(lambda: model.status().state == "off")
    wait_for(lambda: is_gone(pid))
    assert pid_of(model) != pid


def test_a_process_with_an_open_question_is_not_idle(open_process: Open, tmp_path: Path) -> None:
    model = open_process(idle_seconds=0.2)
    pid_of(model)
    answer = model.ask(read_task(f"load {tmp_path / 'gate'}"))
    began = time.monotonic()
    while time.monotonic() - began < 1:
        assert next(answer) is not None
        assert model.status().state == "warming-up"
    (tmp_path / "gate").touch()
    assert any(isinstance(part, TextReading) for part in answer)


def test_closing_an_answer_cancels_it(model: PlaygroundClient, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    answer = model.ask(steer_task(f"slow {ended}", 100_000))
    assert any(isinstance(part, SteerToken) for part in answer)
    assert model.status().state == "busy"
    answer.close()
    wait_for(ended.exists)
    assert model.status().state == "ready"
    pid_of(model)


def test_a_question_canceled_before_its_turn_is_never_started(
    model: PlaygroundClient, tmp_path: Path
) -> None:
    first = model.ask(read_task(f"load {tmp_path / 'gate'}"))
    next(first)
    second = model.ask(read_task(f"begin {tmp_path / 'begun'}"))
    next(second)
    assert model.status().waiting == 2
    second.close()
    time.sleep(1)  # let the process, which waits at the gate, read the cancellation
    (tmp_path / "gate").touch()
    list(first)
    pid_of(model)
    assert not (tmp_path / "begun").exists()


def test_an_answer_that_takes_too_long_names_the_phase_and_when_to_retry(
    model: PlaygroundClient, tmp_path: Path
) -> None:
    pid_of(model)
    question = read_task(f"load {tmp_path / 'gate'}")
    with pytest.raises(UnavailableError) as raised:
        list(model.ask(question, patience_seconds=0.5))
    detail = "The playground is still loading the fake model; try again later."
    assert raised.value.detail == detail
    assert raised.value.retry_after_seconds
    (tmp_path / "gate").touch()
    pid_of(model)


def test_too_many_waiting_questions_are_refused(model: PlaygroundClient, tmp_path: Path) -> None:
    answers = [model.ask(read_task(f"load {tmp_path / 'gate'}")) for _ in range(MAX_WAITING)]
    for answer in answers:
        next(answer)
    with pytest.raises(UnavailableError, match=f"{MAX_WAITING} questions are waiting"):
        next(model.ask(read_task("who")))
    (tmp_path / "gate").touch()
    for answer in answers:
        assert any(isinstance(part, TextReading) for part in answer)


def test_questions_from_several_threads_get_their_own_answers(model: PlaygroundClient) -> None:
    counts: dict[int, int] = {}

    def ask(number: int) -> None:
        counts[number] = sum(
            isinstance(part, SteerToken) for part in model.ask(steer_task("go", number))
        )

    threads = [Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {number: 2 * number for number in range(1, 9)}


def test_the_process_has_low_priority_and_gets_no_ctrl_c(open_process: Open) -> None:
    pid = pid_of(open_process(niceness=7))
    assert psutil.Process(pid).nice() == max(7, os.nice(0))
    assert os.getsid(pid) != os.getsid(0)


def test_closing_the_client_ends_the_process_during_an_answer(model: PlaygroundClient) -> None:
    pid = pid_of(model)
    answer = model.ask(steer_task("slow /dev/null", 100_000))
    assert any(isinstance(part, SteerToken) for part in answer)
    model.close()
    assert is_gone(pid)
    with pytest.raises(UnavailableError):
        list(answer)


def test_the_process_ends_when_its_server_is_killed(settings: Settings) -> None:
    settings.data_dir.mkdir()
    code = (
        "from backend.playground.client import PlaygroundClient\n"
        "from backend.settings import Settings\n"
        "from tests.backend.fake_inference import *\n"
        f"model = PlaygroundClient(Settings(data_dir={str(settings.data_dir)!r}), FAKE_INFERENCE)\n"
        "[reading] = [p for p in model.ask(read_task('who')) if isinstance(p, TextReading)]\n"
        "print(reading.tokens[0].text, flush=True)\n"
        "for part in model.ask(steer_task('slow /dev/null', 1_000_000)): pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert not is_gone(pid)
        server.send_signal(signal.SIGKILL)
    wait_for(lambda: is_gone(pid))


def test_a_process_that_sends_no_json_is_killed(open_process: Open) -> None:
    code = "import sys; sys.stdin.readline(); print('no JSON', flush=True); sys.stdin.read()"
    model = open_process(command=(sys.executable, "-c", code))
    with pytest.raises(UnavailableError, match="was ended by SIGKILL"):
        list(model.ask(read_task("who")))
    assert model.status().state == "off"


def test_a_process_that_cannot_be_started_is_reported(open_process: Open) -> None:
    model = open_process(command=("/nonexistent/python",))
    with pytest.raises(UnavailableError, match="could not be started"):
        list(model.ask(read_task("who")))


LONG = "x" * 2**18
"""More than a pipe holds."""


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(100)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import sys, time; sys.stdin.buffer.read(1000); time.sleep(100)",
    ],
)
def test_a_process_that_reads_no_questions_is_killed_and_blocks_nobody(
    open_process: Open, code: str
) -> None:
    model = open_process(command=(sys.executable, "-c", code), send_seconds=3)
    began = time.monotonic()
    answers = [model.ask(read_task(LONG)) for _ in range(2)]
    for answer in answers:
        assert next(answer) == SteerPhase(phase=STARTING)
    assert (model.status().state, model.status().waiting) == ("warming-up", 2)
    for answer in answers:
        with pytest.raises(UnavailableError, match="the server, because it read no questions"):
            list(answer)
    assert time.monotonic() - began < 20


def test_closing_does_not_wait_for_a_process_that_reads_nothing(open_process: Open) -> None:
    model = open_process(command=(sys.executable, "-c", "import time; time.sleep(100)"))
    next(model.ask(read_task(LONG)))
    began = time.monotonic()
    model.close()
    assert time.monotonic() - began < GRACE_SECONDS + 5


def test_a_long_question_arrives_whole(model: PlaygroundClient) -> None:
    [reading] = [p for p in model.ask(read_task(f"who {LONG}")) if isinstance(p, TextReading)]
    assert int(reading.tokens[0].text) == pid_of(model)
