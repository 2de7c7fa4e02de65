"""A helper process that fails gives its reason to the trainer."""

from __future__ import annotations

from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from sae_engine.activations.processes import Helper, LostHelperError, _Failed


def helper_that_ended(answers: list[object], *, close: bool = False) -> Helper:
    """A helper whose process sent `answers` and ended with exit code 3."""
    helper = object.__new__(Helper)
    helper.connection, theirs = Pipe()
    for answer in answers:
        theirs.send(answer)
    theirs.close()
    helper._process = SimpleNamespace(name="reader on cpu", exitcode=3, join=lambda timeout: None)  # pyright: ignore[reportAttributeAccessIssue]
    if close:
        helper.connection.close()
    return helper


@pytest.mark.parametrize("answers", [[], ["an answer"], ["one", "and another"]])
def test_sending_to_a_helper_that_failed_says_why(answers: list[object]):
    helper = helper_that_ended([*answers, _Failed("CUDA is out of memory.")])
    with pytest.raises(LostHelperError, match=r"reader on cpu failed: CUDA is out of memory\.$"):
        helper.send("a batch")


@pytest.mark.parametrize(("answers", "close"), [([], False), (["an answer"], False), ([], True)])
def test_sending_to_a_helper_that_gave_no_reason_names_its_exit_code(
    answers: list[object], close: bool
):
    helper = helper_that_ended(answers, close=close)
    with pytest.raises(LostHelperError, match=r"ended \(exit code 3\); the log may say why"):
        helper.send("a batch")
