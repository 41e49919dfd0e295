"""One training by several processes, its ranks: what they tell each other, and how they end together or not at all.

Who a process is, torchrun says; messages go by torch.distributed, between hosts by gloo and between GPUs by NCCL.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fast_train.common.files import is_running
from fast_train.common.processes import World, world
from fast_train.common.text import one_line
from fast_train.pipeline.errors import ConfigError, RankLost

T = TypeVar("T")

# In the store: why the run can't go on.
_FAILED = "failed"
_SECONDS_BETWEEN_LOOKS = 0.3
# In which a rank that waits for another one that has failed ends by itself, before it is ended.
_GRACE_SECONDS = 3.0
# In which the reason of a broken connection comes to be known: the process behind it is missed within two looks.
_REASON_SECONDS = 4.0
# In which the first rank may tell what is wrong with all of them.
_FIRST_SECONDS = 1.0
# After which a rank that shows no sign of life is given up; its machine may be gone.
_SIGN_SECONDS, _SILENCE_SECONDS = 5.0, 60.0
# Of a group of processes within this one.
_numbers = itertools.count()


class Waiting(Protocol):
    """A message that is on its way."""

    def wait(self) -> Any: ...


class Ranks:
    """This process among those that train together, for everything that they do together: each calls the same methods
    in the same order. Alone (not ``joined``) they cost nothing and return what they are given.

    Raises RankLost where another rank has ended.
    """

    def __init__(self, place: World | None = None) -> None:
        self.joined = place is not None
        place = place or World(rank=0, size=1, local_rank=0, local_size=1)
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size = place.local_rank, place.local_size

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, of a tensor of one shape on all."""
        if not self.joined:
            return values
        total = values.clone()
        with _together():
            dist.all_reduce(total)
        return total

    def start_sum(self, values: Tensor) -> Waiting:
        """Begin to write the sum over all ranks into ``values``, a contiguous tensor; it is there after the wait."""
        with _together():
            work = dist.all_reduce(values, async_op=True)
        assert work is not None
        return _Waiting(work)

    def gather(self, values: Tensor) -> Tensor:
        """[size, ...]: the ``values`` of each rank, of one shape on all."""
        if not self.joined:
            return values.unsqueeze(0)
        rows = values.new_empty((self.size, *values.shape))
        with _together():
            dist.all_gather(list(rows.unbind()), values.contiguous())
        return rows

    def highest(self, number: int | None) -> int | None:
        """The highest number, of 0 or more, that a rank gives; None where none does. The hosts wait for each other."""
        if not self.joined:
            return number
        most = torch.tensor(-1 if number is None else number)
        with _together():
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return None if most < 0 else int(most)

    def of_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, done by the first rank for all. Where it fails, the others raise RankLost."""
        if not self.joined:
            return work()
        box: list[Any] = [None, None]
        try:
            if self.first:
                box = [work(), True]
        finally:
            with _together():
                dist.broadcast_object_list(box, src=0)
        if not box[1]:
            raise RankLost("the first rank can't begin", told=True, status=2)
        return box[0]

    def check_same(self, what: Any, words: str) -> None:
        """ConfigError, in the rank that differs, unless plain values are those of the first rank. words: for them."""
        if not self.joined:
            return
        digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        if not torch.equal(self.gather(mine)[0], mine):
            raise ConfigError(f"rank {self.rank} has other {words} than rank 0; start all ranks with the same")


class _Waiting:
    def __init__(self, work: dist.Work) -> None:
        self._work = work

    def wait(self) -> None:
        with _together():
            self._work.wait()


class Wishes(NamedTuple):
    """signum: of the signal that a rank is to stop by. save: whether the run is to be saved."""

    signum: int | None = None
    save: bool = False


class Agreement:
    """What any rank wishes, heard by all after the same step, without a wait in a step: the message of one call is
    read ``lag`` calls later. Each rank calls it after every step. Alone, a wish is heard at once."""

    def __init__(self, ranks: Ranks, *, lag: int) -> None:
        self._ranks, self._lag, self._calls = ranks, lag, 0
        self._sent: tuple[Waiting, Tensor] | None = None

    def hear(self, wish: Wishes) -> Wishes:
        if not self._ranks.joined:
            return wish
        self._calls += 1
        if self._calls % self._lag:
            return Wishes()
        heard = self.last()
        # What is heard is done now: it is not to be heard again.
        wish = Wishes() if heard.save or heard.signum else wish
        values = torch.tensor([wish.signum or 0, wish.save], dtype=torch.int64)
        with _together():
            work = dist.all_reduce(values, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._sent = _Waiting(work), values
        return heard

    def last(self) -> Wishes:
        """What is still on its way: to be called at the end, by all ranks."""
        if self._sent is None:
            return Wishes()
        (work, values), self._sent = self._sent, None
        work.wait()
        signum, save = values.tolist()
        return Wishes(signum or None, bool(save))


_ALONE = Ranks()
_current = _ALONE


def current() -> Ranks:
    """The ranks of the block that this process is in (`joined`); alone outside of one."""
    return _current


@contextmanager
def joined() -> Iterator[Ranks]:
    """In the block this process is one of those that torchrun started with it; alone where it did not.

    Where the block fails in one rank, the others end too: those that wait for it raise RankLost, and what does not end
    by itself is ended. Of an error that several ranks have, one tells; the others raise RankLost, which says so.
    Raises ValueError where the environment is no whole one.
    """
    global _current
    place = world()
    if place is None or _current.joined:
        yield _current
        return
    if dist.is_initialized():
        raise ConfigError("torch.distributed is in use by this program already; destroy its process group before")
    store = _connect(place)
    group = _Group(place, store)
    _current = Ranks(place)
    try:
        yield _current
        group.end(_current)
    except BaseException as error:
        group.fail(error)
        raise
    finally:
        _current = _ALONE


def _connect(place: World) -> Store:
    """Meet the other ranks, and make the process group of all."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    with _together():
        store, _, _ = next(rendezvous("env://"))
        # A store may outlive a group: a program may train twice, and torchrun starts processes anew.
        attempt = f"fast-train/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_numbers)}"
        store = PrefixStore(attempt, store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size)
    return store


@contextmanager
def _together() -> Iterator[None]:
    """RankLost where a message does not come through."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise RankLost(f"the connection to another rank broke ({one_line(error)[:200]})") from error


def _is_lost(error: BaseException | None) -> bool:
    """Whether it is a RankLost, or came while one was handled."""
    while error is not None and not isinstance(error, RankLost):
        error = error.__context__
    return error is not None


@contextmanager
def _deaf() -> Iterator[None]:
    """In the block, signals that end a process are ignored: it ends already."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Group:
    """A process group, and a thread that looks whether all of it live."""

    def __init__(self, place: World, store: Store) -> None:
        self._place, self._store = place, store
        where = {"host": socket.gethostname(), "process": os.getpid()}
        places: list[Any] = [None] * place.size
        with _together():
            dist.all_gather_object(places, where)
        self._near = {r: p["process"] for r, p in enumerate(places) if p["host"] == where["host"] and r != place.rank}
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def end(self, ranks: Ranks) -> None:
        """All ranks come to the end of their work."""
        # Before the others may end: who is gone from here on, is done.
        self._over.set()
        self._watch.join()
        ranks.highest(0)
        # A graph that NCCL's work was captured in must be gone before its communicator.
        gc.collect()
        dist.destroy_process_group()

    def fail(self, error: BaseException) -> None:
        """End with an error, which is raised again where this rank is to tell it; else RankLost."""
        with _deaf():
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # torchrun ends all ranks by a signal where it misses one: what raised it does not matter.
        lost = _is_lost(error) or not isinstance(error, Exception)
        record = self._record(_REASON_SECONDS if lost else 0.0 if self._place.rank == 0 else _FIRST_SECONDS)
        known = record is not None
        if record is None:
            record = self._tell(one_line(error) if isinstance(error, Exception) else "stopped by a signal")
        # The watch goes on meanwhile: it ends what hangs here.
        with suppress(RuntimeError):
            dist.distributed_c10d._abort_process_group()
        self._over.set()
        told = record["by"] != self._place.rank
        if told:
            # torchrun ends all ranks as soon as one of them ends.
            time.sleep(_FIRST_SECONDS)
        if told or (lost and (known or isinstance(error, Exception))):
            status = 2 if isinstance(error, (ValueError, OSError)) else getattr(error, "status", 1)
            raise RankLost(record["reason"], told=told, status=status) from error

    def _record(self, seconds: float) -> dict[str, Any] | None:
        """Why the run can't go on, as soon as that is known, in so many seconds; None where it is not."""
        until = time.monotonic() + seconds
        while True:
            with suppress(RuntimeError):
                if self._store.check([_FAILED]):
                    return dict(json.loads(self._store.get(_FAILED)))
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)

    def _tell(self, reason: str) -> dict[str, Any]:
        """Say why the run can't go on, unless another rank has; the reason that stands."""
        record = {"by": self._place.rank, "reason": reason}
        with suppress(RuntimeError):
            record = json.loads(self._store.compare_set(_FAILED, "", json.dumps(record)))
        return record

    def _look(self) -> None:
        """The thread. It needs a connection of its own: that of the group may be waiting for an answer."""
        self._store = self._store.clone() if hasattr(self._store, "clone") else self._store
        signs = _Signs(self._store, self._place)
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            gone = [rank for rank, process in self._near.items() if not is_running(process)]
            if gone:
                self._tell(f"rank {gone[0]} ended without a word: killed, which the system does for lack of memory, or "
                           "crashed")  # fmt: skip
            elif (silent := signs.silent()) is not None:
                self._tell(f"rank {silent} has shown no sign of life for {_SILENCE_SECONDS:.0f} s")
            record = self._record(0.0)
            if record is not None:
                self._end_at_last(record)

    def _end_at_last(self, record: dict[str, Any]) -> None:
        """Leave the process time to end by itself; it may wait for a rank that is gone, where no signal reaches it."""
        if self._over.wait(_GRACE_SECONDS + _REASON_SECONDS):
            return
        if record["by"] == self._place.rank:
            print(f"fast-train: error: {record['reason']}", file=sys.stderr, flush=True)
        os._exit(1)


class _Signs:
    """Signs of life in the store: each rank leaves them, and looks at those of the next one."""

    def __init__(self, store: Store, place: World) -> None:
        self._store, self._mine, self._other = store, place.rank, (place.rank + 1) % place.size
        self._count, self._seen = 0, b""
        self._left_at = self._seen_at = time.monotonic()

    def silent(self) -> int | None:
        """Leave one, if it is time, and the rank that has left none for long; the store's own rank if that is gone."""
        now = time.monotonic()
        if now - self._left_at < _SIGN_SECONDS:
            return None
        # This process itself may have been stopped.
        if now - self._left_at > 2 * _SIGN_SECONDS:
            self._seen_at = now
        self._left_at, self._count = now, self._count + 1
        with suppress(RuntimeError):
            self._store.set(f"signs/{self._mine}", str(self._count))
            if self._store.check([f"signs/{self._other}"]):
                seen = self._store.get(f"signs/{self._other}")
                if seen != self._seen:
                    self._seen, self._seen_at = seen, now
        return self._other if now - self._seen_at > _SILENCE_SECONDS else None
