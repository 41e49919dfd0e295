"""What a step is counted to compute and to move."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fast_train.benchmarks.instrument.cost import count_work
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.settings import ModelConfig, OptimizerConfig
from fast_train.pipeline.engine.augmentation import Augmenter
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import SplitView
from fast_train.pipeline.models import build_model

CPU = torch.device("cpu")


@pytest.fixture
def build(prepared_path):
    def step(optimizer="sgd"):
        manifest = PreparedSet.open(prepared_path).manifest
        spec = AugmentSpec(pad=4, flip=True)
        augmenter = Augmenter(manifest, spec, normalise="set", dtype=torch.float32, device=CPU)
        model = build_model(ModelConfig(arch="resnet8", num_classes=2)).to(memory_format=torch.channels_last)
        return TrainStep(model, augmenter, OptimizerConfig(name=optimizer), device=CPU)

    return step


def _batch(count, split):
    images = torch.randint(0, 256, (split, 16, 16, 3), dtype=torch.uint8)
    return SplitView(images, torch.zeros(split, dtype=torch.long), torch.arange(count))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_small_batch_tells_of_a_large_one(build, optimizer):
    """Of Muon's step most operations are its own, which do not grow with the batch."""
    step = build(optimizer)
    with FlopCounterMode(display=False) as counter:
        step(_batch(96, split=96))
    counted = count_work(step, _batch(8, split=96), batch_size=96)
    assert counted.flops == pytest.approx(counter.get_total_flops() / 96)
    assert counted.bytes == pytest.approx(count_work(step, _batch(96, split=96), batch_size=96).bytes, rel=0.02)


def test_what_an_optimizer_overwrites_is_written():
    """Its operations on lists of tensors, here of 32 numbers, return nothing: two are read, and one of them written."""

    class Step:
        unchanged = staticmethod(nullcontext)
        sums, terms = ([torch.zeros(8), torch.zeros(24)] for _ in range(2))

        def __call__(self, batch):
            torch._foreach_add_(self.sums, self.terms)

    assert count_work(Step(), _batch(8, split=8), batch_size=4).bytes == 3 * 32 * 4 / 4


def test_counting_leaves_the_step_as_it_was(build):
    step = build("muon")
    before = [tensor.clone() for tensor in step.tensors()]
    count_work(step, _batch(8, split=64), batch_size=8)
    assert all(torch.equal(a, b) for a, b in zip(before, step.tensors(), strict=True))


@pytest.mark.parametrize("kernel", ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)])
def test_a_gather_reads_the_rows_that_it_takes_not_the_split(build, monkeypatch, kernel):
    if kernel == "triton":
        from fast_train.kernels.augment_triton import augment_triton

        monkeypatch.setattr("fast_train.kernels.augment.augment_cpu", augment_triton)
    small, large = (count_work(build(), _batch(8, split=split), batch_size=8) for split in (64, 6400))
    assert small.bytes == large.bytes
