"""The captured step without a GPU: a recorder stands in for the CUDA graph, and replays what a graph would.

Like a graph it keeps the operations of one step with their tensors and runs them again on the same memory. Python does
not run again, so whatever a step takes from Python anew (a rate, an epoch, a tensor made outside) would stay as it was.
"""

import copy
import dataclasses
import gc
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fast_train.kernels.augment_reference import augment_reference
from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.settings import ModelConfig, OptimizerConfig, RunConfig
from fast_train.pipeline.engine.augmentation import Augmenter
from fast_train.pipeline.engine.build import ready_steps
from fast_train.pipeline.engine.graph import CapturedStep
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.engine.step import Proxy, TrainStep
from fast_train.pipeline.loaders import Batch, SplitView
from fast_train.pipeline.models import build_model

CPU = torch.device("cpu")


class _Recorder(TorchDispatchMode):
    """Notes each operation with its arguments and results; hands no value to Python, as no capture does.

    A capture computes nothing. Here it must, for the results; `undo` sets back what it changed.
    """

    def __init__(self):
        super().__init__()
        self.calls, self._before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal"):
            raise RuntimeError(f"{func} asks for a value while a step is captured")
        kwargs = kwargs or {}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            # native_batch_norm does not declare that it moves these.
            if written or argument.name in ("running_mean", "running_var"):
                changed = [t for t in tree_leaves(given.get(argument.name)) if isinstance(t, torch.Tensor)]
                self._before += [(tensor, tensor.clone()) for tensor in changed]
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def undo(self):
        for tensor, value in reversed(self._before):
            tensor.copy_(value)

    def forget(self):
        self.calls.clear()
        self._before.clear()


class _Graph:
    """torch.cuda.CUDAGraph on the CPU."""

    first = last = None

    def __init__(self):
        self.recorder = _Recorder()
        _Graph.first, _Graph.last = _Graph.first or self, self

    def pool(self):
        return id(_Graph.first)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.recorder.calls:
            again = func(*args, **kwargs)
            for before, now in zip(tree_leaves(out), tree_leaves(again), strict=True):
                # What is a view, or changed in place, is there already.
                if isinstance(before, torch.Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class _Stream:
    captured = None

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class _Event:
    """torch.cuda.Event: notes what is recorded and waited for, by its number."""

    made, log = 0, []

    def __init__(self):
        self.number = _Event.made
        _Event.made += 1

    def record(self, stream):
        _Event.log.append(("record", self.number))

    def synchronize(self):
        _Event.log.append(("wait", self.number))


@contextmanager
def _graph(graph, *, pool, stream, capture_error_mode):
    assert pool is None or pool == _Graph.first.pool(), "all graphs of a step share memory"
    assert pool is None or stream is _Stream.captured, "what one stream freed, the allocator gives to that stream alone"
    _Stream.captured = stream
    assert not gc.isenabled(), "what the collector frees can break a capture"
    with graph.recorder:
        yield
    graph.recorder.undo()


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", _graph)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(_Event, "made", 0)
    monkeypatch.setattr(_Event, "log", [])
    monkeypatch.setattr(_Stream, "captured", None)
    monkeypatch.setattr(_Graph, "first", None)
    monkeypatch.setattr(_Graph, "last", None)
    # In operations of PyTorch, as the kernel of a GPU reads tensors and no Python numbers.
    monkeypatch.setattr("fast_train.kernels.augment.augment_cpu", augment_reference)


class _Growing(Augmenter):
    """Gives images of several sizes."""

    def __call__(self, batch):
        return torch.nn.functional.interpolate(super().__call__(batch), size=self.size)


def _step(prepared, *, fuse="none", amp=None, arch="resnet8", kind=Augmenter, keep=None, **config):
    torch.manual_seed(0)
    spec = AugmentSpec(pad=2, flip=True, flip_mode="alternating", cutout=4)
    augmenter = kind(prepared.manifest, spec, normalise="set", dtype=amp or torch.float32, device=CPU)
    model = build_model(ModelConfig(arch=arch, num_classes=3), fuse=fuse).to(memory_format=torch.channels_last)
    options = OptimizerConfig(**{"lr": 0.01, "weight_decay": 1e-3, **config})
    if keep is None:
        return TrainStep(model, augmenter, options, device=CPU, amp=amp)
    proxy = Proxy(copy.deepcopy(model), augmenter, options, device=CPU, amp=amp)
    return TrainStep(model, augmenter, options, device=CPU, amp=amp, proxy=proxy, keep=keep)


def _batches(prepared, count, kind=SplitView):
    packed = prepared.packed("train")
    images, labels = torch.tensor(packed.images), torch.tensor(packed.labels)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        indices = torch.randperm(len(labels), generator=generator)[:16]
        view = SplitView(images, labels, indices)
        yield view if kind is SplitView else Batch(images[indices], labels[indices], indices)


@pytest.mark.parametrize(("kind", "options"), [
    (SplitView, dict()),
    (Batch, dict(grad_clip=0.5, ema_decay=0.9)),
    (SplitView, dict(amp=torch.bfloat16, name="muon", ema_decay=0.9)),
    (SplitView, dict(amp=torch.float16, grad_clip=5.0)),
    (SplitView, dict(amp=torch.float16, name="muon")),
    (SplitView, dict(lookahead=3, whiten_lr=0.05, bias_lr=0.02, name="muon", arch="speednet8")),
    (SplitView, dict(keep=8, name="muon")),
    (SplitView, dict(fuse="norm")),
    (Batch, dict(fuse="conv")),
])  # fmt: skip
def test_replays_equal_the_eager_step(prepared, recorded, kind, options):
    """Weights, statistics, momentum, averages and sums after 6 or 12 steps, bit for bit: the same operations from
    Python and replayed, with a rate and an epoch that change."""
    # Fewer where a CPU is slow: it emulates float16.
    count = 6 if options.get("arch") or options.get("amp") == torch.float16 else 12
    eager, step = _step(prepared, **options), _step(prepared, **options)
    batches = list(_batches(prepared, count, kind))
    captured = CapturedStep(step, batches[0])
    for number, batch in enumerate(batches):
        for one, run in ((eager, eager), (step, captured)):
            one.set_rate(0.01 / (1 + number), epochs=3 * number / count)
            one.augmenter.set_epoch(number // 3)
            run(batch)
            one.after(number + 1, count)
    assert eager.metrics.read() == step.metrics.read()
    assert eager.scaler.state_dict() == step.scaler.state_dict()
    for ours, theirs in zip(step.tensors(), eager.tensors(), strict=True):
        assert torch.equal(ours, theirs)
    assert gc.isenabled()


def test_a_step_of_several_sizes_has_a_graph_for_each(prepared, recorded):
    eager, step = (_step(prepared, kind=_Growing, ema_decay=0.9) for _ in range(2))
    batches = list(_batches(prepared, 6))
    runtime = dataclasses.replace(resolve_runtime(RunConfig(device="cpu")), graph=True)
    captured = ready_steps(step, batches[0], runtime, step.augmenter, {8, 16, 12})
    for batch, size in zip(batches, (8, 8, 12, 16, 16, 8), strict=True):
        eager.augmenter.set_size(size)
        for one, run in ((eager, eager), (step, captured[size])):
            one.set_rate(0.01)
            run(batch)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(step.tensors(), eager.tensors(), strict=True))


def test_a_captured_step_keeps_what_its_graph_reads_and_writes(prepared, recorded):
    """A CUDA graph holds addresses: freed, they would be other tensors' memory at the next replay."""
    step = _step(prepared)
    tensors = [weakref.ref(tensor) for tensor in step.tensors()]
    batch = next(_batches(prepared, 1))
    captured = CapturedStep(step, batch)
    # The recorder holds tensors, as a CUDA graph does not.
    _Graph.last.recorder.forget()
    del step
    gc.collect()
    assert all(tensor() is not None for tensor in tensors)
    del captured
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors)


def test_the_host_is_at_most_sixteen_steps_ahead(prepared, recorded):
    """Before each replay it waits for the sixteenth before: what a loader handed over for that one is free again."""
    batch = next(_batches(prepared, 1))
    captured = CapturedStep(_step(prepared), batch)
    for _ in range(40):
        captured(batch)
    replays = [number for what, number in _Event.log if what == "record"]
    waits = [number for what, number in _Event.log if what == "wait"]
    assert len(replays) == len(waits) == 40
    assert _Event.log[::2] == [("wait", number) for number in waits], "it waits before it replays"
    for number in range(16, 40):
        assert waits[number] == replays[number - 16]
        assert waits[number] not in replays[number - 15 : number]
