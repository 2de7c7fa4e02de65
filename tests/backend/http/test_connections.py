"""What the event loop says when a burst of connections takes the last descriptor."""

from __future__ import annotations

import asyncio
import errno

import pytest

from backend.http.connections import report_exhaustion


@pytest.mark.parametrize(
    ("error", "traceback"),
    [
        (OSError(errno.EMFILE, "Too many open files"), False),
        (OSError(errno.ENFILE, "Too many open files in system"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ValueError("a defect"), True),
    ],
)
def test_only_a_lack_of_descriptors_is_one_sentence(
    error: Exception, traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(report_exhaustion)
        loop.call_exception_handler({"message": "accept failed", "exception": error})

    asyncio.run(fail())
    (record,) = caplog.records
    assert bool(record.exc_info) == traceback
    assert ("new connections wait" in record.getMessage()) != traceback
