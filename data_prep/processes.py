"""Work in processes that know nothing of the caller's script, end with it, and never hang it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

from fast_train.data_prep.errors import PreparedSetError

Job = TypeVar("Job")
Result = TypeVar("Result")

_STALLED_SECONDS = 30.0
_SECONDS_TO_END = 5.0
# One process a core is enough; libraries would start as many threads in each.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerPool:
    """Python processes of our own, each with a thread that waits for it.

    Those of ``multiprocessing`` import the caller's script again, which must be written for it and lie in a file. A
    crash or a lack of memory in a decoder ends a process here, and not the caller's.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker")
        self._lock = threading.Lock()
        self._closed = False
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []

    def map(
        self,
        function: Callable[[Job], Result],
        jobs: Iterable[Job],
        *,
        say: Callable[[str], None],
        patience: float = _STALLED_SECONDS,
    ) -> Iterator[Result]:
        """The results in the order of the jobs; few jobs are in flight at a time.

        say: is told where no result comes for ``patience`` seconds, as from a stopped process; the work goes on with
        it. Raises PreparedSetError within moments of a worker's death.
        """
        pending: deque[Future[Result]] = deque()

        def next_result() -> Result:
            if not wait([pending[0]], timeout=patience).done:
                say(f"no image for {patience:g} s: a process is stopped, or the disk is slow; still waiting")
            return pending.popleft().result()

        for job in jobs:
            try:
                pending.append(self._threads.submit(self._run, function, job))
            except RuntimeError as error:
                raise PreparedSetError(f"{error} for a process that decodes images; try fewer --workers") from error
            if len(pending) > 2 * self._workers:
                yield next_result()
        while pending:
            yield next_result()

    def close(self) -> None:
        """End the processes, whatever they do."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            # What it was still to be sent has no reader.
            with suppress(BrokenPipeError), worker:
                pass

    def _run(self, function: Callable[[Job], Result], job: Job) -> Result:
        """One job, in an idle process or a new one."""
        worker = self._take()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            pickle.dump((function, job), worker.stdin)
            worker.stdin.flush()
            value, error, trace = pickle.load(worker.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as broken:
            raise PreparedSetError(
                f"a process that decodes images {_end_of(worker)}; try again, with fewer --workers"
            ) from broken
        self._idle.append(worker)
        if error is not None:
            raise error from RuntimeError(trace)
        result: Result = value
        return result

    def _take(self) -> subprocess.Popen[bytes]:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        with self._lock:
            if self._closed:
                raise PreparedSetError("the preparation has ended")
            if self._idle:
                return self._idle.pop()
            try:
                # In a session of its own: Ctrl-C and hang-ups reach the parent alone, which cleans up.
                worker = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **_ONE_THREAD},
                    start_new_session=True,
                )
            except OSError as error:
                raise PreparedSetError(
                    f"can't start {self._workers} processes to decode images: {error.strerror}; try fewer --workers"
                ) from error
            self._all.append(worker)
        return worker


def _end_of(worker: subprocess.Popen[bytes]) -> str:
    with suppress(subprocess.TimeoutExpired):
        worker.wait(_SECONDS_TO_END)
    worker.kill()
    status = worker.wait()
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")


def serve() -> None:
    """A worker's life: jobs come from standard input until the parent is gone, results go to standard output."""
    from fast_train.data_prep.images import limit_worker

    limit_worker()
    jobs = sys.stdin.buffer
    # Whatever a library prints must not come between the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(EOFError, BrokenPipeError):
        while True:
            function, job = pickle.load(jobs)
            pickle.dump(_answer(function, job), results)
            results.flush()
    os._exit(0)


def _answer(function: Callable[[Any], Any], job: Any) -> tuple[Any, Exception | None, str]:
    """The result, or the error and its trace."""
    try:
        return function(job), None, ""
    except Exception as error:
        return None, error, traceback.format_exc()
