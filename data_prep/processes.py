"""Work in a pool of processes that ends with its parent and never hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from fast_train.data_prep.errors import PreparedSetError

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerPool:
    """Spawned processes: forking is not safe beside the threads of NumPy, torch or a progress bar."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        with _without_terminal_signals():
            self._pool = ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
            )

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """The results in the order of the jobs; few jobs are in flight at a time.

        Raises PreparedSetError within moments of a worker's death.
        """
        pending: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                # Submitting may start a process.
                with _without_terminal_signals():
                    pending.append(self._pool.submit(function, job))
                if len(pending) > 2 * self._workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise PreparedSetError(
                "a process that decodes images was killed (out of memory?); try again, with fewer --workers"
            ) from error

    def close(self) -> None:
        """End the processes once their current jobs are done."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_terminal_signals() -> Iterator[None]:
    """Processes started in the block inherit its signal mask: Ctrl-C and hang-ups reach the parent alone.

    The parent cleans up, and they end with it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent() -> None:
    """Without this, workers of a killed parent wait for jobs forever: they hold the pipe open themselves."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
