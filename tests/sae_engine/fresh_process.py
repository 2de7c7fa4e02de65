"""Code in a process of its own that has imported PyTorch, but nothing of the Hugging Face hub.

Importing takes longer than what most of these processes do. So they are forked from a process that
has imported the heavy modules, except those that read their settings from the environment.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest

_IMPORTED = [
    *("torch", "torch._dynamo", "torch.distributed.tensor", "safetensors.torch", "tokenizers"),
    *("numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "fsspec", "dill", "aiohttp"),
    *("httpx", "numba", "sae_engine.schema.config", "sae_engine.kernels.compiled"),
]
_TOO_EARLY = ("huggingface_hub", "transformers", "datasets")
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(_IMPORTED)


def start(code: str, *arguments: str) -> BaseProcess:
    """Run `code` in a new process whose `sys.argv` ends with `arguments`."""
    process = _forking.Process(target=_run, args=(code, arguments, dict(os.environ)))
    process.start()
    return process


def printed_by(code: str, environment: Mapping[str, str], *, seconds: float = 240) -> str:
    """What `code` prints in a new process with only these variables, and warnings as errors; fails
    the test if it raises.
    """
    answers, answer = _forking.Pipe(duplex=False)
    process = _forking.Process(target=_answer, args=(answer, code, dict(environment)))
    process.start()
    answer.close()
    try:
        assert answers.poll(seconds), f"no answer within {seconds:.0f} s"
        printed, error = answers.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    assert not error, error
    return printed


def _run(code: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    assert not set(_TOO_EARLY) & set(sys.modules)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


def _answer(answer: Connection, code: str, environment: Mapping[str, str]) -> None:
    warnings.simplefilter("error")
    printed, error = StringIO(), ""
    try:
        with redirect_stdout(printed):
            _run(code, (), environment)
    except BaseException:
        error = traceback.format_exc()
    answer.send((printed.getvalue(), error))
