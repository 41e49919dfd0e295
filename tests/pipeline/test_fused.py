"""Networks with fused layers against the same networks without them."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from cudnn_plans import PlanInPyTorch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fast_train.kernels.batchnorm_reference import Unnormalised
from fast_train.kernels.switches import switched
from fast_train.pipeline.config.settings import Config, ModelConfig, RunConfig, SelectionConfig
from fast_train.pipeline.engine.build import build_augmenter, build_network, build_step, ready_step
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import SplitView
from fast_train.pipeline.models import FUSIONS, build_model
from fast_train.pipeline.models import fused as fused_norm
from fast_train.pipeline.models.blocks import PreActBottleneck
from fast_train.pipeline.models.fused import FusedNorm
from fast_train.pipeline.models.resnet import PreActResNet, ResNet

_KINDS = ("resnet14", "plain-14", "preact-resnet14", "bottleneck", "preact-bottleneck", "quick-resnet8", "imagenet")
#: (how to fuse, network): all that there are on a CPU, where cudnn's are conv's.
_FUSED = [(fuse, kind) for fuse in ("norm", "conv") for kind in _KINDS if fuse == "norm" or "preact" not in kind]


#: Networks that are built from a block, since none so small has a name.
_BLOCKS = {
    "basic": (ResNet, BasicBlock),
    "bottleneck": (ResNet, Bottleneck),
    "preact-bottleneck": (PreActResNet, PreActBottleneck),
}
#: One block as the stem leaves its shape, one that halves it, and one after that: the least that has every way.
_SMALL = (1, 2, 0)


def _pair(kind, fuse, shortcut=None, layers=(2, 2, 2)):
    """A network and its fused twin, of the same weights."""
    if kind in _BLOCKS:
        network, block = _BLOCKS[kind]
        makers = (network, block), (FUSIONS[fuse][network], FUSIONS[fuse][block])
        models = []
        for network, block in makers:
            torch.manual_seed(0)
            models.append(network(block, layers, (8, 16, 32), num_classes=5, shortcut=shortcut or "B"))
    else:
        stem, arch = ("imagenet", "resnet14") if kind == "imagenet" else ("auto", kind)
        models = []
        for how in ("none", fuse):
            torch.manual_seed(0)
            config = ModelConfig(arch=arch, num_classes=5, shortcut=shortcut, stem=stem)
            models.append(build_model(config, fuse=how))
    return [model.to(memory_format=torch.channels_last) for model in models]


def _images(count=8, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _through_the_kernels(monkeypatch):
    """As on a CUDA device: through the Triton kernels, in the interpreter."""
    from fast_train.kernels import batchnorm_triton, convolution_cudnn, convolution_triton
    from fast_train.kernels.tiling import tiles_of

    def run(kernel):
        return lambda *a, residual=None, **options: kernel(*a, residual, **options)

    monkeypatch.setattr("fast_train.pipeline.models.fused.batch_norm", run(batchnorm_triton.batch_norm_triton))
    monkeypatch.setattr(
        "fast_train.pipeline.models.fused.batch_norm_twice", run(batchnorm_triton.batch_norm_twice_triton)
    )

    monkeypatch.setattr(convolution_cudnn, "plan_of", PlanInPyTorch)
    monkeypatch.setattr(convolution_cudnn, "_FEWEST_CHANNELS", 8)

    def convolve(raw, weight, bias, filters, *rest, residual=None, cudnn=False, **options):
        if cudnn:
            arguments = (raw, weight, bias, filters, *rest, residual)
            return convolution_cudnn.norm_relu_convolution_cudnn(*arguments, **options)
        # The widest layers take cuDNN's way, as a large network's do.
        tiles = tiles_of(*filters.shape[:2], filters.element_size()) if max(filters.shape[:2]) <= 32 else None
        return convolution_triton.norm_relu_convolution_triton(
            raw, weight, bias, filters, *rest, residual, tiles=tiles, **options
        )

    here = "fast_train.pipeline.models.fused_conv"
    monkeypatch.setattr(f"{here}.with_statistics", convolution_triton.with_statistics_triton)
    monkeypatch.setattr(f"{here}.normalise", run(convolution_triton.normalise_triton))
    monkeypatch.setattr(f"{here}.norm_relu_convolution", convolve)


def _same(plain, fused, tolerance, size=16):
    """Outputs, gradients, running statistics in training; then outputs in evaluation.

    Gradients to 1 % of their length: where rounding moves one value over zero its ReLU passes in one network and not in
    the other, which changes some gradient by up to 0.4 %. Otherwise they agree to 1e-5.
    """
    images, labels = _images(size=size), torch.arange(8) % 5
    for model in (plain, fused):
        model.train().zero_grad()
    outputs = [model(images) for model in (plain, fused)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=tolerance, atol=tolerance)
    for logits in outputs:
        F.cross_entropy(logits, labels).backward()
    ours, theirs = dict(fused.named_parameters()), dict(plain.named_parameters())
    for name, parameter in theirs.items():
        assert float((ours[name].grad - parameter.grad).norm()) <= 1e-2 * float(parameter.grad.norm()), name
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(images), plain.eval()(images), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize(("fuse", "kind"), _FUSED)
def test_a_network_computes_the_same(fuse, kind, option):
    """Float32; what is left is the order of sums: PyTorch's relative error of 1e-6, through 14 layers."""
    plain, fused = _pair(kind, fuse, None if kind.startswith("plain") else option)
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fused.state_dict().values(), strict=True))
    _same(plain, fused, 1e-4)


@pytest.mark.interpreter
@pytest.mark.parametrize(("fuse", "kind"), [
    ("norm", "basic"), ("norm", "preact-bottleneck"), ("conv", "basic"), ("conv", "bottleneck"), ("cudnn", "basic"),
    ("cudnn", "bottleneck"),
])  # fmt: skip
def test_a_network_computes_the_same_through_the_kernels(fuse, kind, monkeypatch):
    _through_the_kernels(monkeypatch)
    _same(*_pair(kind, fuse, layers=_SMALL), 1e-4, size=8)


@pytest.mark.parametrize("kind", _KINDS)
def test_every_norm_is_fused_and_no_relu_is_left(kind):
    """Nothing runs beside the kernel: each norm is called once, and no activation of its own."""
    _, fused = _pair(kind, "norm")
    norms = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, FusedNorm) for norm in norms)
    calls = []
    for module in fused.modules():
        if isinstance(module, (FusedNorm, nn.ReLU)):
            module.register_forward_hook(lambda m, *_: calls.append(m))
    fused.train()(_images())
    assert sorted(map(id, calls)) == sorted(map(id, norms))


@pytest.mark.parametrize("joined", [True, False])
def test_a_projection_is_normalised_by_the_norm_that_adds_it(joined, monkeypatch):
    """Unless that is switched off: then by itself, with the same result."""
    plain, fused = _pair("bottleneck", "norm")
    calls = []
    for name in ("batch_norm", "batch_norm_twice"):
        run = getattr(fused_norm, name)
        monkeypatch.setattr(fused_norm, name, lambda *a, run=run, **o: calls.append(o["residual"]) or run(*a, **o))
    with switched(joined_shortcut=joined):
        _same(plain, fused, 1e-4)
    norms = sum(isinstance(module, FusedNorm) for module in fused.modules())
    # One in the first block of each stage.
    assert sum(isinstance(residual, Unnormalised) for residual in calls) == (3 if joined else 0)
    assert len(calls) == norms - (3 if joined else 0)


@pytest.mark.parametrize("frozen", ["bn", "downsample"])
def test_norms_that_are_frozen_compute_the_same(frozen):
    """In a network that trains, by the running statistics: those of the branches, or those of the projections."""
    plain, fused = _pair("bottleneck", "norm")
    for model in (plain, fused):
        for name, module in model.train().named_modules():
            if isinstance(module, nn.BatchNorm2d) and ("downsample" in name) == (frozen == "downsample"):
                module.eval().requires_grad_(False)
    torch.testing.assert_close(fused(_images()), plain(_images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", ["bn1", "layer1.1.bn2"])
def test_convolutions_with_sums_refuse_a_frozen_norm(frozen):
    _, fused = _pair("resnet14", "conv", "B")
    fused.train().get_submodule(frozen).eval()
    with pytest.raises(ValueError, match=r"a BatchNorm is frozen; .* use --fuse norm"):
        fused(_images())


@pytest.mark.parametrize("kind", [kind for fuse, kind in _FUSED if fuse == "conv"])
def test_every_convolution_but_the_stem_and_projections_is_fused(kind, monkeypatch):
    """Each is one call of the kernel; no norm, ReLU or convolution of a block runs on its own."""
    from fast_train.pipeline.models import fused_conv

    _, fused = _pair(kind, "conv")
    calls, joint = [], []
    fuse = fused_conv.norm_relu_convolution
    monkeypatch.setattr(fused_conv, "norm_relu_convolution", lambda *a, **o: joint.append(1) or fuse(*a, **o))
    for name, module in fused.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    fused.train()(_images())
    blocks = sum(isinstance(m, nn.Conv2d) for name, m in fused.named_modules() if "conv" in name) - 1
    # A pool's output has no norm to wait: the first convolution after it is PyTorch's.
    first = ["layer1.0.conv1"] if kind == "imagenet" else []
    assert len(joint) == blocks - len(first)
    assert [name for name in calls if "downsample" not in name] == ["conv1", *first]


@pytest.mark.interpreter
@pytest.mark.parametrize("fuse", ["norm", "conv", "cudnn"])
def test_a_compiled_network_computes_the_same(fuse, monkeypatch):
    """Through the operators, without a graph break, in training: two names and their gradients included."""
    _through_the_kernels(monkeypatch)
    torch._dynamo.reset()
    (_, again), (_, eager) = (_pair("basic", fuse, layers=(1, 1, 0)) for _ in range(2))
    for model in (torch.compile(again, fullgraph=True, backend="aot_eager"), eager):
        for step in range(2):
            # The first call moves the running statistics: the second must not compile anew for that.
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                model(_images(count=2, size=8)).square().sum().backward()
    for (name, ours), theirs in zip(again.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-3, atol=1e-4 * float(theirs.grad.abs().max()), msg=name
        )
    for ours, theirs in zip(again.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def _config(prepared_path, **run):
    run = {"device": "cpu", "seed": 3, **run}
    data = dataclasses.replace(Config().data, path=str(prepared_path), batch_size=32)
    model = ModelConfig(arch="resnet8", num_classes=3, image_size=16)
    return dataclasses.replace(Config(), data=data, model=model, run=RunConfig(**run))


@pytest.mark.parametrize("fuse", ["norm", "conv"])
def test_training_is_the_same(prepared, prepared_path, fuse):
    """Five steps of the whole step. Where rounding moves one value over zero its ReLU passes in one network and not in
    the other, which changes a gradient by some percent of these few images'."""
    steps = []
    for how in ("none", fuse):
        config = _config(prepared_path, fuse=how)
        runtime = resolve_runtime(config.run)
        step = build_step(config, build_augmenter(config, prepared, runtime, train=True), runtime)
        packed = prepared.packed("train")
        images, labels = torch.tensor(packed.images), torch.tensor(packed.labels)
        step.set_rate(0.05)
        for number in range(5):
            indices = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))[:32]
            step(SplitView(images, labels, indices))
        steps.append(step)
    plain, fused = steps
    assert fused.metrics.read().loss == pytest.approx(plain.metrics.read().loss, rel=1e-4)
    for ours, theirs in zip(fused.tensors(), plain.tensors(), strict=True):
        distance, length = (t.detach().double().norm().item() for t in (ours - theirs, theirs))
        assert distance <= 5e-2 * length


def test_it_is_off_unless_asked_for():
    assert resolve_runtime(RunConfig(device="cpu")).fuse == "none"
    runtime = resolve_runtime(RunConfig(device="cpu", fuse="norm"))
    assert "fused norm" in runtime.describe()
    assert isinstance(build_network(Config(), runtime).bn1, FusedNorm)


def test_a_proxy_is_not_fused(prepared, prepared_path):
    """As its network's activation is GELU."""
    config = dataclasses.replace(_config(prepared_path, fuse="norm"), selection=SelectionConfig(share=0.5))
    runtime = resolve_runtime(config.run)
    step = build_step(config, build_augmenter(config, prepared, runtime, train=True), runtime)
    assert isinstance(step.model.bn1, FusedNorm)
    assert not any(isinstance(module, FusedNorm) for module in step.proxy.model.modules())


def test_where_cudnn_cant_fuse_it_is_the_norm_alone(monkeypatch):
    """With a line that says what is missing; --deterministic is refused, as its sums are in any order."""
    from fast_train.kernels import convolution_cudnn

    runtime = resolve_runtime(RunConfig(device="cpu", fuse="cudnn"))
    assert runtime.fuse == "norm"
    assert any(note.endswith("so this is --fuse norm: it needs a GPU") for note in runtime.notes())
    with pytest.raises(ConfigError, match="leave out --deterministic"):
        RunConfig(fuse="cudnn", deterministic=True)

    class Frontend:
        backend_version = staticmethod(lambda: 91900)

    h100, bf16 = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "cudnn", Frontend)
    assert "cuDNN 92400 or newer, not 91900" in convolution_cudnn.why_not(h100, bf16)
    Frontend.backend_version = staticmethod(lambda: 92400)
    assert convolution_cudnn.why_not(h100, bf16) is None
    assert "bfloat16 alone" in convolution_cudnn.why_not(h100, torch.float16)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert "pip install 'fast-train[cudnn]'" in convolution_cudnn.why_not(h100, bf16)
    for other in ((8, 0), (10, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, other=other: other)
        assert "compute capability 9.0" in convolution_cudnn.why_not(h100, bf16)


def test_what_it_does_not_go_with():
    with pytest.raises(ConfigError, match="channels_last"):
        RunConfig(fuse="norm", channels_last=False)
    with pytest.raises(ConfigError, match="unknown fusion 'cnov'; did you mean 'conv'"):
        RunConfig(fuse="cnov")
    with pytest.raises(ValueError, match="ReLU alone"):
        build_model(ModelConfig(arch="resnet8", activation="elu"), fuse="norm")
    with pytest.raises(ValueError, match="speednet8 has GELU"):
        build_model(ModelConfig(arch="speednet8"), fuse="conv")
    with pytest.raises(ValueError, match="take --fuse norm"):
        build_model(ModelConfig(arch="preact-resnet18"), fuse="conv")


def test_compile_mode_reaches_the_compiler(prepared, prepared_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch._inductor, "list_mode_options", lambda mode: seen.append(mode) or {})
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    config = _config(prepared_path, compile=True, compile_mode="max-autotune-no-cudagraphs")
    runtime = resolve_runtime(config.run)
    build_step(config, build_augmenter(config, prepared, runtime, train=True), runtime)
    assert seen == ["max-autotune-no-cudagraphs"]
    assert "max-autotune" in runtime.describe()
    with pytest.raises(ConfigError, match="did you mean"):
        RunConfig(compile_mode="max-autotune-no-cudagraph")
    with pytest.raises(ConfigError, match="add --compile"):
        resolve_runtime(RunConfig(device="cpu", compile_mode="max-autotune-no-cudagraphs"))


@pytest.mark.gpu
@pytest.mark.parametrize("fuse", ["norm", "conv", "cudnn"])
@pytest.mark.parametrize("compile", [False, True])
def test_gpu_training_is_the_same(prepared, prepared_path, compile, fuse):
    """Captured, 10 steps in bfloat16. It rounds at 2^-8 in each layer, where the fused kernel rounds once and PyTorch's
    up to three times. On a CPU, ten steps amplified that to 0.5 % of the loss with the worst of four seeds."""
    losses = []
    for how in ("none", fuse):
        config = _config(prepared_path, device="cuda", amp="bf16", fuse=how, compile=compile)
        runtime = resolve_runtime(config.run)
        if runtime.less_fused is not None:
            pytest.skip(f"--fuse {fuse}: {runtime.less_fused}")
        step = build_step(config, build_augmenter(config, prepared, runtime, train=True), runtime)
        packed = prepared.packed("train")
        images, labels = (torch.tensor(a, device="cuda") for a in (packed.images, packed.labels))
        batch = SplitView(images, labels, torch.arange(32, device="cuda"))
        ready = ready_step(step, batch, runtime)
        step.set_rate(0.01)
        taken = []
        for number in range(10):
            generator = torch.Generator().manual_seed(number)
            step.metrics.reset()
            ready(batch._replace(indices=torch.randperm(len(labels), generator=generator)[:32].cuda()))
            taken.append(step.metrics.read().loss)
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)
