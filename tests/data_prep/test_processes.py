import operator
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.processes import WorkerPool

_PID = "__import__('os').getpid()"


@pytest.fixture
def pool():
    pool = WorkerPool(2)
    yield pool
    pool.close()


def _map(pool, function, jobs, **options):
    return pool.map(function, jobs, **{"say": pytest.fail, **options})


def test_results_come_in_the_order_of_the_jobs(pool):
    jobs = list(range(-20, 20))
    assert list(_map(pool, operator.neg, iter(jobs))) == [-job for job in jobs]
    assert list(_map(pool, abs, [])) == []


def test_few_jobs_are_drawn_ahead(pool):
    drawn = []

    def jobs():
        for i in range(100):
            drawn.append(i)
            yield i

    next(_map(pool, operator.neg, jobs()))
    assert len(drawn) < 10


def test_an_error_comes_back_and_its_process_goes_on(pool):
    (first,) = _map(pool, eval, [_PID])
    with pytest.raises(ZeroDivisionError):
        list(_map(pool, eval, ["1 // 0"]))
    assert list(_map(pool, eval, [_PID])) == [first]


def test_what_a_worker_prints_is_no_result(pool):
    assert list(_map(pool, os.system, ["echo noise"])) == [0]
    assert list(_map(pool, print, ["noise"])) == [None]


@pytest.mark.parametrize(
    "function, job, said",
    [
        (os._exit, 3, "ended with status 3; try again, with fewer --workers"),
        (signal.raise_signal, signal.SIGKILL, r"was killed by SIGKILL \(out of memory\?\)"),
        (signal.raise_signal, signal.SIGSEGV, "was killed by SIGSEGV; "),
    ],
)
def test_a_dead_worker_is_an_error(pool, function, job, said):
    with pytest.raises(PreparedSetError, match=said):
        list(_map(pool, function, [job] * 3))


def test_workers_need_no_file_of_the_caller_and_no_guard_in_it():
    script = (
        "import multiprocessing\n"
        "from fast_train.data_prep.processes import WorkerPool\n"
        "def work():\n"
        "    pool = WorkerPool(1)\n"
        "    print(*pool.map(abs, [-1], say=print), flush=True)\n"
        "    pool.close()\n"
        "work()\n"
        # A daemonic process may start none by multiprocessing.
        "child = multiprocessing.get_context('fork').Process(target=work, daemon=True)\n"
        "child.start()\n"
        "child.join()\n"
    )
    ended = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "1\n1\n", ended.stderr


def test_a_stopped_worker_is_told_and_waited_for(pool):
    said = []
    (worker,) = _map(pool, eval, [_PID])
    os.kill(worker, signal.SIGSTOP)
    timer = threading.Timer(1, os.kill, (worker, signal.SIGCONT))
    timer.start()
    assert list(_map(pool, operator.neg, [1], say=said.append, patience=0.2)) == [-1]
    timer.join()
    assert len(said) == 1
    assert "still waiting" in said[0]


def test_a_stopped_worker_does_not_hold_up_the_end():
    pool = WorkerPool(1)
    (worker,) = _map(pool, eval, [_PID])
    os.kill(worker, signal.SIGSTOP)
    pool.close()
    assert not _runs(worker)


def test_more_workers_than_descriptors_is_an_error():
    pool = WorkerPool(40)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, before[1]))
    try:
        with pytest.raises(PreparedSetError, match="can't start 40 processes to decode images: Too many open files"):
            list(_map(pool, time.sleep, [0.5] * 40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        pool.close()


def test_libraries_start_no_threads_in_a_worker(pool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert list(_map(pool, os.getenv, ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])) == ["1", "1"]


def test_workers_end_with_a_killed_parent():
    script = (
        "import time\n"
        "from fast_train.data_prep.processes import WorkerPool\n"
        "pool = WorkerPool(1)\n"
        f"print(*pool.map(eval, [{_PID!r}], say=print), flush=True)\n"
        "next(pool.map(time.sleep, [0.5], say=print))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _runs(worker):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
