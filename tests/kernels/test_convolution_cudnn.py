"""cuDNN takes the graphs and compiles them, for a device that need not be here."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import triton
from cudnn_plans import H100, stand_in_driver

from fast_train.kernels import convolution_cudnn
from fast_train.kernels.convolution_cudnn import Graph, Plan

_FRONTEND = importlib.util.find_spec("cudnn") is not None
# In a process of its own: the driver's stand-in would take the place of a driver.
_BUILD = """
import json, re, sys
from fast_train.kernels.convolution_cudnn import Graph, frontend
properties, graphs = json.load(sys.stdin)
for fields in graphs:
    shape, *rest = fields
    device = frontend().create_device_properties(properties)
    graph, tensors = Graph(tuple(shape), *rest).describe(device_property=device)
    graph.build_plan_at_index(0)
    (name,) = set(re.findall(rb"cudnn_generated[A-Za-z0-9_]+", bytes(graph.serialize())))
    room = graph.get_workspace_size_plan_at_index(0)
    print(json.dumps([name.decode(), graph.get_execution_plan_count(), room]), file=sys.stderr)
"""


def _graphs_of_resnet18(batch=1024):
    """The stem and the shortcuts are PyTorch's; data gradients of stride 2 are cuDNN's plain ones."""
    found = []
    for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        shape = (batch, channels, side, side)
        if channels > 64:
            found.append(Graph((batch, channels // 2, 2 * side, 2 * side), channels, 3, 2))
        found.append(Graph(shape, channels, 3, 1))
        # Of a block's second convolution, of the next block's first one, and of the first one after the stem.
        masks = [(False, False), (True, True), *([(True, False)] if channels == 64 else [])]
        found += [Graph(shape, channels, 3, 1, True, second, from_y) for second, from_y in masks]
    return found


def _build(graphs, folder):
    """(kernel's name, number of plans, bytes of workspace) of the first plan of each graph."""
    driver = stand_in_driver(folder)
    if driver is None:
        pytest.skip("needs gcc, to build what stands in for the driver of a GPU")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver.parent)}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], input=json.dumps([H100, graphs]), env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith('["')]


@pytest.mark.skipif(not _FRONTEND, reason="needs nvidia-cudnn-frontend: pip install 'fast-train[cudnn]'")
@pytest.mark.parametrize("graphs", [
    pytest.param([Graph((8, 64, 4, 4), 72, 3, 1), Graph((8, 64, 4, 4), 72, 3, 1, True, True)], id="two"),
    pytest.param(_graphs_of_resnet18(), id="resnet18", marks=pytest.mark.slow),
])  # fmt: skip
def test_graphs_are_native_kernels_of_an_h100(graphs, tmp_path):
    """Described, accepted and compiled; nothing runs."""
    built = _build(graphs, tmp_path)
    for graph, (name, plans, room) in zip(graphs, built, strict=True):
        print(*graph, name, plans, room)
        assert "native_sm90" in name
        assert ("convBwdData" if graph.gradient else "convFwd") in name


class _Plans:
    """A graph's plans: the milliseconds that each takes, or where it fails."""

    def __init__(self, *plans):
        self.plans, self.run = plans, []

    def get_execution_plan_count(self):
        return len(self.plans)

    def build_plan_at_index(self, index):
        if self.plans[index] == "built":
            raise LookupError("no kernel")

    def get_workspace_size_plan_at_index(self, index):
        return 100 * index

    def execute_plan_at_index(self, bound, room, index, handle):
        if self.plans[index] == "run":
            raise LookupError("not on this device")
        assert len(room) >= 100 * index
        self.run.append(index)
        bound["sum"] += 1

    def bench(self, run, **_):
        run()
        return self.plans[self.run[-1]]


@pytest.fixture
def planned(monkeypatch):
    """Makes a plan of a graph that has such plans."""

    def make(plans):
        monkeypatch.setattr(Graph, "describe", lambda graph, **_: (plans, ["x", "sum", "other sum"]))
        monkeypatch.setattr(triton.testing, "do_bench", plans.bench)
        return Plan(Graph((2, 64, 4, 4), 64, 3, 1), torch.device("cpu"))

    frontend = SimpleNamespace(create_handle=object, set_stream=lambda **_: None)
    monkeypatch.setattr(convolution_cudnn, "frontend", lambda: frontend)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    return make


def test_the_fastest_plan_that_runs_is_taken(planned):
    """Of the first five; the sums are those of one run."""
    plans, sums = _Plans("built", 3.0, 1.0, "run", 2.0, 0.5), torch.zeros(2, 1)
    plan = planned(plans)
    for _ in range(2):
        plan.run(torch.zeros(1), sums)
    assert plans.run == [1, 2, 4, 2, 2]
    assert sums[0] == 2


def test_a_graph_without_a_plan_that_runs_is_an_error(planned):
    with pytest.raises(RuntimeError, match=r"cuDNN has no plan that runs for Graph\(shape=\(2, 64, 4, 4\)"):
        planned(_Plans("built", "run")).run(torch.zeros(1), torch.zeros(2, 1))
