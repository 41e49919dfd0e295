"""One suite over all loaders: each is one line in LOADERS and one more value of the fixture `name`."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import get_args

import numpy as np
import pytest
import torch

from fast_train.kernels.order import epoch_order
from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.settings import LoaderName
from fast_train.pipeline.errors import LoadingError
from fast_train.pipeline.loaders import LOADERS, SplitView, build_loader, torch_loader
from fast_train.pipeline.loaders.native import NativeAugment


def _build(name, prepared, split="train", **options):
    # FFCV's code for several threads takes twice as long to compile.
    workers = 1 if name == "ffcv" else 2
    options = {"batch_size": 16, "seed": 3, "workers": workers, **options}
    return build_loader(name, prepared, split, **options)


def _collect(loader):
    """All batches of an epoch, concatenated: (images, labels, indices)."""
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def test_training_follows_the_permutation_in_batches_of_one_shape(name, prepared):
    with _build(name, prepared) as loader:
        for epoch in (0, 1, 5):
            loader.set_epoch(epoch)
            batches = list(loader)
            assert len(batches) == len(loader) == 120 // 16
            assert {tuple(b.images.shape) for b in batches} == {(16, 16, 16, 3)}
            seen = torch.cat([b.indices for b in batches])
            assert torch.equal(seen, epoch_order(120, seed=3, epoch=epoch)[: len(seen)])
            for batch in batches:
                assert batch.images.dtype == torch.uint8
                assert batch.labels.dtype == batch.indices.dtype == torch.int64


def test_each_index_comes_once_where_the_batches_fit(name, prepared):
    with _build(name, prepared, batch_size=24) as loader:
        _, _, indices = _collect(loader)
        assert torch.equal(indices.sort().values, torch.arange(120))


def test_pixels_labels_and_order_equal_the_file(name, prepared):
    packed = prepared.packed("train")
    with _build(name, prepared) as loader:
        loader.set_epoch(2)
        images, labels, indices = _collect(loader)
    assert np.array_equal(images.numpy(), packed.images[indices.numpy()])
    assert np.array_equal(labels.numpy(), packed.labels[indices.numpy()])


def test_equals_the_resident_loader(name, prepared):
    with _build(name, prepared) as loader, _build("resident", prepared) as resident:
        for epoch in (0, 7):
            loader.set_epoch(epoch)
            resident.set_epoch(epoch)
            for ours, theirs in zip(loader, resident, strict=True):
                for field in ours._fields:
                    assert torch.equal(getattr(ours, field), getattr(theirs, field))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 120])
def test_all_loaders_give_the_same_batches_of_any_size(name, prepared, batch_size):
    with _build(name, prepared, batch_size=batch_size) as loader:
        loader.set_epoch(1)
        images, labels, indices = _collect(loader)
    packed = prepared.packed("train")
    assert torch.equal(indices, epoch_order(120, seed=3, epoch=1)[: len(indices)])
    assert np.array_equal(images.numpy(), packed.images[indices.numpy()])
    assert np.array_equal(labels.numpy(), packed.labels[indices.numpy()])


def test_batches_can_be_kept(name, prepared):
    """Iterating gives tensors of their own, whatever buffers the loader reads into."""
    with _build(name, prepared, batch_size=5) as loader:
        kept = list(loader)
        copies = [batch.images.clone() for batch in loader]
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


def test_workers_do_not_change_what_comes(name, prepared):
    collected = []
    for workers in (0, 1, 2):
        with _build(name, prepared, workers=workers) as loader:
            collected.append(_collect(loader))
    for other in collected[1:]:
        assert all(torch.equal(a, b) for a, b in zip(collected[0], other, strict=True))


@pytest.mark.parametrize("batch_size", [1, 10, 33, 1000])
def test_evaluation_sees_each_image_exactly_once_in_order(name, prepared, batch_size):
    with _build(name, prepared, "test", train=False, batch_size=batch_size) as loader:
        images, labels, indices = _collect(loader)
        assert torch.equal(indices, torch.arange(33))
        assert np.array_equal(images.numpy(), prepared.packed("test").images)
        assert np.array_equal(labels.numpy(), prepared.packed("test").labels)
        assert len(list(loader)) == len(loader) == -(-33 // batch_size)


def test_restart_in_the_middle_of_an_epoch(name, prepared):
    states = {}
    with _build(name, prepared) as loader:
        loader.set_epoch(4)
        whole = list(loader)
        for stop in (4, 0, 1, 7):
            loader.set_epoch(4)
            batches = iter(loader)
            for _ in range(stop):
                next(batches)
            states[stop] = loader.state_dict()
    with _build(name, prepared) as resumed:
        for stop, state in states.items():
            resumed.load_state_dict(state)
            rest = list(resumed)
            assert resumed.state_dict()["step"] == len(whole)
            assert len(rest) == len(whole) - stop
            for ours, theirs in zip(rest, whole[stop:], strict=True):
                assert torch.equal(ours.indices, theirs.indices)
                assert torch.equal(ours.images, theirs.images)
            resumed.set_epoch(5)
            assert len(list(resumed)) == len(whole)


def test_the_feed_of_training_holds_the_same_batches(name, prepared):
    with _build(name, prepared) as loader:
        for fed, batch in zip(loader.feed(), _build("resident", prepared), strict=True):
            assert type(fed) is type(loader.example())
            images = fed.images[fed.indices] if isinstance(fed, SplitView) else fed.images
            assert torch.equal(images, batch.images)
            assert torch.equal(fed.targets(), batch.labels)
            assert torch.equal(fed.indices, batch.indices)


def test_the_example_has_the_feeds_shapes_and_keeps_the_place(name, prepared):
    with _build(name, prepared) as loader:
        loader.load_state_dict({"epoch": 2, "step": 3, "seed": 3, "batch_size": 16})
        example = loader.example()
        assert loader.state_dict()["step"] == 3
        rest = list(loader.feed())
        assert len(rest) == len(loader) - 3
        for ours, theirs in zip(example, rest[0], strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_seeds_and_epochs_differ(name, prepared):
    with _build(name, prepared, seed=1) as loader, _build(name, prepared, seed=2) as other:
        first, second = _collect(loader)[2], _collect(other)[2]
        loader.set_epoch(1)
        later = _collect(loader)[2]
    assert not torch.equal(first, second)
    assert not torch.equal(first, later)


def test_early_break_then_a_whole_epoch(name, prepared):
    with _build(name, prepared) as loader:
        for _ in range(3):
            for _batch in loader:
                break
        _, _, indices = _collect(loader)
        assert len(indices) == len(loader) * 16


def test_200_broken_epochs_leave_nothing_behind(name, prepared):
    """Neither threads, nor processes, nor memory grow with the epochs that end early."""

    def break_off(loader, epochs):
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for number, _batch in enumerate(loader.feed()):
                if number == epoch % 3:
                    break

    with _build(name, prepared, workers=1) as loader:
        break_off(loader, 20)
        before = _held()
        break_off(loader, 200)
        after = _held()
        until = time.monotonic() + 10
        # The system lists a thread for a moment longer than Python, which has joined it.
        while after[1] > before[1] and time.monotonic() < until:
            time.sleep(0.01)
            after = _held()
        # What an earlier test left may end meanwhile: fewer is fine.
        assert all(now <= then for now, then in zip(after[:3], before[:3], strict=True)), (before, after)
        assert after[3] - before[3] < 16 << 20


def _held():
    """(threads of Python, threads of the process, child processes, bytes in memory)."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    children = len(multiprocessing.active_children())
    return threading.active_count(), len(os.listdir("/proc/self/task")), children, resident


def test_torchs_threads_stay_as_they_were(name, prepared):
    threads = torch.get_num_threads()
    with _build(name, prepared, workers=2) as loader:
        _collect(loader)
        assert torch.get_num_threads() == threads


def test_close_in_the_middle_of_an_epoch(name, prepared):
    loader = _build(name, prepared)
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    del batches


def _taken(loader, count):
    """A pass of which ``count`` batches are taken."""
    begun = loader.feed()
    for _ in range(count):
        next(begun)
    assert loader.state_dict()["step"] == count
    return begun


_IS_OVER = "this pass over split 'train' is over"


@pytest.mark.parametrize("then", ["another pass", "set_epoch", "load_state_dict"])
def test_what_ends_a_pass(name, prepared, then):
    """The pass before must neither go on nor take batches away from the new one."""
    with _build(name, prepared) as loader:
        whole = _collect(loader)[2]
        for taken in (0, 1, 3):
            loader.set_epoch(0)
            old = _taken(loader, taken)
            if then == "set_epoch":
                loader.set_epoch(0)
            elif then == "load_state_dict":
                loader.load_state_dict(loader.state_dict())
            new = loader.feed() if then == "another pass" else None
            with pytest.raises(ValueError, match=_IS_OVER):
                next(old)
            new = new or loader.feed()
            rest = [next(new).indices.clone()]
            del old
            rest += [batch.indices.clone() for batch in new]
            start = taken if then == "load_state_dict" else 0
            assert torch.equal(torch.cat(rest), whole[start * 16 :])
            assert loader.state_dict()["step"] == len(loader)
            assert next(new, None) is None


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_a_pass(name, prepared, taken):
    with _build(name, prepared) as loader:
        old = _taken(loader, taken)
        loader.close()
        with pytest.raises(ValueError, match=_IS_OVER):
            next(old)


def test_a_loader_that_nobody_holds_is_gone_at_once(name, prepared):
    """Its threads would outlive it, and processes that begin later would inherit their locks."""
    loader = _build(name, prepared)
    next(loader.feed())
    gone = weakref.ref(loader)
    del loader
    assert gone() is None


def test_the_processs_random_numbers_are_left_alone(name, prepared):
    before = torch.get_rng_state()
    with _build(name, prepared) as loader:
        _collect(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_loaders_at_once(name, prepared):
    with _build(name, prepared, seed=1) as first, _build(name, prepared, seed=2) as second:
        for a, b in zip(first, second, strict=True):
            assert not torch.equal(a.indices, b.indices)
        assert torch.equal(_collect(first)[2], epoch_order(120, seed=1, epoch=0)[:112])


def test_close_twice_leaves_no_process(name, prepared):
    before = len(multiprocessing.active_children())
    loader = _build(name, prepared)
    next(iter(loader))
    loader.close()
    loader.close()
    assert len(multiprocessing.active_children()) == before
    for begin in (iter, type(loader).feed):
        with pytest.raises(ValueError, match="closed; build a new one"):
            next(begin(loader))


def test_a_split_smaller_than_one_batch(name, prepared):
    with pytest.raises(ValueError, match="holds 120 images, fewer than one batch of 121"):
        _build(name, prepared, batch_size=121)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "has seed 4, this run 3; resume with the same seed"),
        ({"batch_size": 8}, "has batch size 8, this run 16"),
        ({"count": 121}, "has split size 121, this run 120"),
        ({"step": 8}, "has step 8, the epoch 7 batches"),
        ({"step": -1}, "has step -1"),
    ],
)
def test_state_of_another_run_is_refused(name, prepared, change, message):
    with _build(name, prepared) as loader, pytest.raises(ValueError, match=message):
        loader.load_state_dict({**loader.state_dict(), **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"workers": -1}, "-1 workers are out of range; give 0 to "),
        ({"workers": 100_000}, "100000 workers are out of range; give 0 to "),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_options_out_of_range(name, prepared, options, message):
    for train in (True, False):
        with pytest.raises(ValueError, match=message):
            _build(name, prepared, train=train, **options)


def test_more_workers_than_cores_are_no_warning(prepared, recwarn):
    with _build("torch", prepared, workers=(os.cpu_count() or 1) + 1) as loader:
        next(iter(loader))
        assert not [warning for warning in recwarn if "DataLoader" in str(warning.message)]


@pytest.fixture
def looks_often(monkeypatch):
    """torch looks after its workers every five seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    waits = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waits, "__defaults__", (0.3,))


@pytest.mark.usefixtures("looks_often")
def test_a_stopped_worker_ends_the_wait(prepared, monkeypatch):
    with _build("torch", prepared, workers=1, batch_size=4) as loader:
        batches = iter(loader)
        next(batches)
        monkeypatch.setattr(torch_loader, "_PATIENCE_SECONDS", 1)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(LoadingError, match="sent nothing for 1 s; are they stopped"):
            list(batches)


@pytest.mark.usefixtures("looks_often")
def test_a_killed_worker_is_told_where_its_batch_is_waited_for(prepared):
    """And not in the middle of a step, which could then not be saved."""
    with _build("torch", prepared, workers=1) as loader:
        batches = iter(loader)
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        with pytest.raises(LoadingError, match="was killed, likely for lack of memory; give fewer --workers"):
            list(batches)


@pytest.mark.timeout(60)
def test_stopped_workers_do_not_outlive_their_loader_which_waits_for_none(prepared, monkeypatch):
    # torch waits that long for each.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 600)
    with _build("torch", prepared, workers=2) as loader:
        next(iter(loader))
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
    for worker in workers:
        worker.join()


def test_workers_without_a_place_for_sockets_are_refused(prepared, monkeypatch):
    """Where TMPDIR has a long name: they would start, and their batches never come."""
    folder = "/" + "t" * 120
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", folder)
    with pytest.raises(ValueError, match="AF_UNIX path too long; set TMPDIR to another folder"):
        _build("torch", prepared, workers=1)
    _build("torch", prepared, workers=0).close()


def _fail(*arguments, **options):
    raise OSError(errno.EMFILE, "Too many open files")


_READS = {
    "torch": "multiprocessing.reduction.DupFd",
    "ffcv": "fast_train.pipeline.loaders.ffcv_reader.Reading.run_pipeline",
    "dali": "fast_train.data_prep.formats.tfrecord.TFRecordSplit.take",
}


@pytest.mark.parametrize("name", [name for name in _READS if LOADERS[name].missing() is None])
def test_what_a_library_fails_by_ends_the_pass_in_one_line(prepared, monkeypatch, name):
    with _build(name, prepared, workers=1) as loader:
        monkeypatch.setattr(_READS[name], _fail)
        with pytest.raises(LoadingError, match="Too many open files") as told:
            list(loader)
    assert "\n" not in str(told.value)


def test_a_worker_that_ends_in_the_middle_of_a_hand_over_is_told(prepared, monkeypatch):
    """Its connection then ends early, which is none of the system's errors."""

    def end_early(*arguments, **options):
        raise EOFError

    with _build("torch", prepared, workers=1) as loader:
        monkeypatch.setattr("multiprocessing.connection.Client", end_early)
        with pytest.raises(LoadingError, match="a loading process failed"):
            list(loader)


def test_no_worker_holds_a_lock_that_its_parent_would_wait_for(prepared, monkeypatch):
    """Killed with that of torch's event in its hands, as for lack of memory, it would hold up the parent for ever."""
    is_set = multiprocessing.synchronize.Event.is_set

    def die_inside(event):
        if multiprocessing.parent_process() is not None:
            event._cond.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        return is_set(event)

    monkeypatch.setattr("multiprocessing.synchronize.Event.is_set", die_inside)
    with _build("torch", prepared, workers=1) as loader:
        assert sum(len(batch.indices) for batch in loader) == len(loader) * loader.batch_size


def test_no_worker_collects_what_its_parent_left(prepared):
    """Of another library's object that may be to wait for threads that a forked process has not."""
    parent = os.getpid()

    class Left:
        def __init__(self):
            self.itself = self

        def __del__(self):
            if os.getpid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

    Left()
    with _build("torch", prepared, workers=1) as loader:
        assert sum(len(batch.indices) for batch in loader) == len(loader) * loader.batch_size


_KILLED_GROUP = """
import os, signal, subprocess, sys
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders import build_loader

signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
with build_loader("torch", PreparedSet.open(sys.argv[1]), "train", batch_size=16, workers=2) as loader:
    seen = 0
    for batch in loader:
        seen += len(batch.indices)
        if seen == 32:
            # By another process: a worker does end where its parent says so.
            stop = f"import os; os.killpg({os.getpgrp()}, {sys.argv[2]})"
            subprocess.run([sys.executable, "-c", stop], start_new_session=True, check=True)
print(seen)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_does_not_end_the_workers(prepared_path, signum):
    """Ctrl-C, and the end of a batch job: the training decides when it is over."""
    command = [sys.executable, "-c", _KILLED_GROUP, str(prepared_path), str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["told", "112"]


@pytest.mark.skipif(LOADERS["ffcv"].missing() is not None, reason=str(LOADERS["ffcv"].missing()))
def test_ffcv_compiles_once_and_leaves_numbas_types_as_they_are(prepared):
    """By itself it compiles for each loader, and makes all arrays of bytes in the process read-only."""
    import numba
    from numba.core.event import install_recorder

    array = numba.uint8[::1]
    with _build("ffcv", prepared) as loader:
        first = _collect(loader)
    assert array.mutable
    assert numba.uint8[::1] is array
    with install_recorder("numba:compile") as compiled, _build("ffcv", prepared) as loader:
        assert torch.equal(_collect(loader)[0], first[0])
    assert not compiled.buffer


def test_the_settings_name_every_loader():
    assert set(LOADERS) == set(get_args(LoaderName))


def test_only_dali_augments_by_itself(prepared):
    native = NativeAugment(spec=AugmentSpec(), mean=(0.5,) * 3, std=(0.5,) * 3, dtype=torch.float32, seed=3)
    for name in ("resident", "torch"):
        with pytest.raises(ValueError, match=f"loader {name} augments nothing by itself; take dali"):
            _build(name, prepared, native=native)


def test_unknown_name(name, prepared):
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        build_loader(name + "x", prepared, "train", batch_size=16)


@pytest.mark.gpu
def test_gpu_batches_are_the_cpus(name, prepared):
    with _build(name, prepared, device="cuda") as loader, _build("resident", prepared) as reference:
        for ours, theirs in zip(loader, reference, strict=True):
            assert ours.images.is_cuda
            assert torch.equal(ours.images.cpu(), theirs.images)
            assert torch.equal(ours.labels.cpu(), theirs.labels)
            assert torch.equal(ours.indices.cpu(), theirs.indices)
