"""A thread that writes files while a training goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Writer:
    """Runs jobs one after the other in a thread of its own.

    Unlike an executor's, the thread holds up neither the end of the process nor callers that must
    not wait: what it writes is either complete or absent.

    Example:
        >>> writer = Writer()
        >>> writer.submit(lambda: 1 + 1).result()
        2
        >>> writer.close()
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        # One permanent thread: starting one takes longer than what it does under the GIL.
        self._thread = threading.Thread(
            target=_work, args=(self._jobs,), name="sbi_ignite-checkpoint", daemon=True
        )
        self._thread.start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Run a job after those before it.

        Args:
            job: Called without arguments.

        Returns:
            Its result, or what it raises.
        """
        future: Future[Any] = Future()
        self._jobs.put((future, job))
        return future

    def close(self, wait: bool = True) -> None:
        """End the thread after the jobs that it has.

        Args:
            wait: Whether to wait for that.
        """
        self._jobs.put(None)
        if wait:
            self._thread.join()


def _work(jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (item := jobs.get()) is not None:
        future, job = item
        try:
            result = job()
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(result)
        del item, future, job
