import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.processes import WorkerPool


@pytest.fixture
def pool():
    pool = WorkerPool(2)
    yield pool
    pool.close()


def test_results_come_in_the_order_of_the_jobs(pool):
    jobs = list(range(-20, 20))
    assert list(pool.map(operator.neg, iter(jobs))) == [-job for job in jobs]
    assert list(pool.map(abs, [])) == []


def test_few_jobs_are_drawn_ahead(pool):
    drawn = []

    def jobs():
        for i in range(100):
            drawn.append(i)
            yield i

    next(pool.map(operator.neg, jobs()))
    assert len(drawn) < 10


def test_a_dead_worker_is_an_error(pool):
    with pytest.raises(PreparedSetError, match="was killed"):
        list(pool.map(os._exit, [0, 0, 0]))


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from fast_train.data_prep.processes import WorkerPool\n"
        "def number(_):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(1)\n"
        "    print(*pool.map(number, [0]), flush=True)\n"
        "    next(pool.map(time.sleep, [600]))\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
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
