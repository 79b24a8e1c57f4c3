"""A backend process outlives its training by a bounded time only."""

from __future__ import annotations

import contextlib
import os

from sbi_ignite.loggers.subprocess_main import Reports


def test_a_backend_process_that_retries_notices_once_that_its_training_is_gone():
    """Its next report finds the pipe broken, and that starts the clock that ends it."""
    reading, writing = os.pipe()
    gone = []
    reports = Reports(os.fdopen(writing, "w"), lambda: gone.append(True))
    reports(trouble="the server is away")
    assert gone == []
    os.close(reading)
    for _ in range(3):
        reports(trouble="the server is still away")
    assert gone == [True]
    # What could not be written would be written again when the stream is closed.
    with contextlib.suppress(BrokenPipeError):
        reports._stream.close()
