"""The step and what it is made of, on fresh random batches against plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.settings import ModelConfig, OptimizerConfig
from fast_train.pipeline.engine.augmentation import Augmenter
from fast_train.pipeline.engine.graph import CapturedStep, warm_up
from fast_train.pipeline.engine.step import Proxy, TrainStep
from fast_train.pipeline.loaders import Batch, SplitView
from fast_train.pipeline.models import build_model
from fast_train.pipeline.optim.optimizer import build_optimizer

CPU = torch.device("cpu")


def _step(prepared, *, device=CPU, arch="resnet8", amp=None, compile=False, spec=None, keep=None, **config):
    torch.manual_seed(0)
    augmenter = Augmenter(
        prepared.manifest,
        spec or AugmentSpec(pad=2, flip=True),
        normalise="set",
        dtype=amp or torch.float32,
        device=device,
    )
    model = build_model(ModelConfig(arch=arch, num_classes=3)).to(device, memory_format=torch.channels_last)
    options = OptimizerConfig(**{"lr": 0.05, "weight_decay": 1e-3, **config})
    common = dict(device=device, amp=amp, compile=compile)
    if keep is None:
        return TrainStep(model, augmenter, options, **common)
    small = build_model(ModelConfig(arch="resnet8", num_classes=3)).to(device, memory_format=torch.channels_last)
    proxy = Proxy(small, augmenter, OptimizerConfig(lr=0.05), **common)
    return TrainStep(model, augmenter, options, proxy=proxy, keep=keep, **common)


def _split(prepared, device=CPU):
    packed = prepared.packed("train")
    return torch.tensor(packed.images, device=device), torch.tensor(packed.labels, device=device)


def _batches(prepared, count, device=CPU, size=32):
    images, labels = _split(prepared, device)
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        yield SplitView(images, labels, torch.randperm(120, generator=generator)[:size].to(device))


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_plain_pytorch(prepared, nesterov, clip):
    """Weights after ten steps against an unfused SGD, a float learning rate and no static buffers."""
    step = _step(prepared, nesterov=nesterov, grad_clip=clip, label_smoothing=0.1, decay_all=True)
    model = copy.deepcopy(step.model)
    plain = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov, weight_decay=1e-3, foreach=False
    )
    loss_sum = correct = 0.0
    for number, batch in enumerate(_batches(prepared, 10)):
        rate = 0.05 / (1 + number)
        step.set_rate(rate)
        step(batch)
        plain.param_groups[0]["lr"] = rate
        plain.zero_grad()
        logits = model(step.augmenter(batch))
        labels = batch.targets()
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        plain.step()
        loss_sum += float(loss.detach()) * 32
        correct += int((logits.argmax(1) == labels).sum())
    for ours, theirs in zip(step.model.state_dict().values(), model.state_dict().values(), strict=True):
        # Fused and plain SGD round in another order: a few units in the last place a step.
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)
    totals = step.metrics.read()
    assert totals.images == 320
    assert totals.correct == pytest.approx(correct, abs=2)
    assert totals.loss == pytest.approx(loss_sum, rel=1e-4)


def _gathered(view):
    """The batch that a view of the split means."""
    return Batch(view.images[view.indices], view.labels[view.indices], view.indices)


def test_gathering_equals_batches_taken_beforehand(prepared):
    gathering, plain = _step(prepared), _step(prepared)
    for view in _batches(prepared, 5):
        gathering(view)
        plain(_gathered(view))
    for a, b in zip(gathering.tensors(), plain.tensors(), strict=True):
        assert torch.equal(a, b)


def test_a_proxy_and_the_network_are_trained_on_what_is_hardest_for_the_proxy(prepared):
    """Against plain PyTorch: the network sees what the proxy chose, and the proxy learns from no other image."""
    step, (batch,) = _step(prepared, keep=10), _batches(prepared, 1)
    proxy = copy.deepcopy(step.proxy.model)
    alone = _step(prepared)
    images, labels = step.augmenter(batch), batch.targets()
    losses = F.cross_entropy(proxy(images), labels, reduction="none")
    chosen = losses.argsort(descending=True)[:10]
    losses[chosen].mean().backward()

    step(batch)

    alone.augmenter = lambda _: images[chosen]
    alone(batch._replace(indices=batch.indices[chosen]))
    for ours, theirs in zip(step.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert step.metrics.read() == pytest.approx(alone.metrics.read(), rel=1e-5)
    for ours, theirs in zip(step.proxy.model.parameters(), proxy.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_weight_decay_spares_normalisation_and_biases(prepared):
    model = build_model(ModelConfig(arch="resnet8", num_classes=3))
    optimizer, _ = build_optimizer(model, OptimizerConfig(weight_decay=0.1), CPU)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.1 if name.endswith("weight") and "bn" not in name else 0.0
        assert decay[id(parameter)] == expected, name
    everything, _ = build_optimizer(model, OptimizerConfig(weight_decay=0.1, decay_all=True), CPU)
    assert {g["weight_decay"] for g in everything.param_groups} == {0.1}


def test_average_is_the_moving_average_of_the_weights(prepared):
    step = _step(prepared, ema_decay=0.8)
    expected = [p.detach().double().clone() for p in step.model.parameters()]
    for batch in _batches(prepared, 6):
        step(batch)
        for mean, parameter in zip(expected, step.model.parameters(), strict=True):
            mean.mul_(0.8).add_(parameter.detach(), alpha=0.2)
    for mean, average in zip(expected, step.average.model.parameters(), strict=True):
        torch.testing.assert_close(average.double(), mean, rtol=1e-5, atol=1e-6)
    assert step.evaluated_model is step.average.model


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config", [{"ema_decay": 0.9}, {"lookahead": 2}, {"ema_decay": 0.9, "name": "muon"}, {"keep": 16}]
)
def test_unchanged_undoes_everything(prepared, amp, config):
    step = _step(prepared, amp=amp, **config)
    for batch in _batches(prepared, 2):
        step(batch)
    before = [t.detach().clone() for t in step.tensors()]
    scalers = [part.scaler for part in (step, step.proxy) if part]
    scales = [scaler.state_dict() for scaler in scalers]
    warm_up(step, next(_batches(prepared, 1)))
    assert all(torch.equal(a, b) for a, b in zip(before, step.tensors(), strict=True))
    assert [scaler.state_dict() for scaler in scalers] == scales
    assert len(before) > 50


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_float16_skips_a_step_whose_gradient_overflows(prepared, name):
    step = _step(prepared, amp=torch.float16, name=name)
    step(next(_batches(prepared, 1)))
    scale = step.scaler.get_scale()
    before = [p.detach().clone() for p in step.model.parameters()]
    step.scaler._scale.fill_(1e30)
    step(next(_batches(prepared, 2)))
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))
    assert step.scaler.get_scale() == pytest.approx(5e29)
    assert scale > 0


@pytest.mark.parametrize("config", [{"ema_decay": 0.9}, {"lookahead": 2}, {"name": "muon"}, {"keep": 16}])
def test_state_goes_through_a_dictionary(prepared, config):
    step, other = _step(prepared, **config), _step(prepared, **config)
    for number, batch in enumerate(_batches(prepared, 3)):
        step(batch)
        step.after(number + 1, 20)
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    for number, batch in enumerate(_batches(prepared, 4)):
        for one in (step, other):
            one(batch)
            one.after(number + 4, 20)
    assert all(torch.equal(a, b) for a, b in zip(step.tensors(), other.tensors(), strict=True))


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_compiled_step_equals_the_eager_one_and_never_recompiles(prepared, restored_threads):
    """Losses of 20 steps. Fused kernels round in another order; training amplifies that a little each step."""
    eager, compiled = _step(prepared, lr=0.01), _step(prepared, lr=0.01, compile=True)
    warm_up(compiled, next(_batches(prepared, 1)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, batch in enumerate(_batches(prepared, 20)):
            torch.set_num_threads(1 + number % 2)
            for step in (eager, compiled):
                step.set_rate(0.01 / (1 + number))
                step.augmenter.set_epoch(number)
                step.metrics.reset()
                step(batch)
            assert compiled.metrics.read().loss == pytest.approx(eager.metrics.read().loss, rel=5e-3)
            assert torch.get_num_threads() == 1 + number % 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "muon"])
@pytest.mark.parametrize("kind", [SplitView, Batch])
@pytest.mark.parametrize(("amp", "tolerance"), [(None, 1e-3), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_gpu_captured_step_gives_the_losses_of_the_eager_one(prepared, monkeypatch, amp, tolerance, kind, name):
    """50 steps. Both run the same kernels, but cuDNN may choose others for the second model, and atomic sums in
    the backward pass come in any order: relative 1e-3 in float32; bfloat16 and float16 round at 2^-8 and 2^-11
    in each layer, which 50 steps of training amplify to at most 2 %. Muon works in bfloat16 whatever the type, and
    makes small directions of the gradient as large as the others, with their rounding: 5 %."""
    # cuDNN's default for float32 is TensorFloat-32, of bfloat16's precision nearly.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device("cuda")
    tolerance = 5e-2 if name == "muon" else tolerance
    options = dict(device=device, amp=amp, lr=0.01, grad_clip=5.0, ema_decay=0.9, name=name)
    eager, step = _step(prepared, **options), _step(prepared, **options)

    batches = list(_batches(prepared, 50, device))
    if kind is Batch:
        batches = [_gathered(view) for view in batches]
    captured = CapturedStep(step, batches[0])
    for number, batch in enumerate(batches):
        for one, run in ((eager, eager), (step, captured)):
            one.set_rate(0.01 / (1 + number / 10))
            one.augmenter.set_epoch(number)
            one.metrics.reset()
            run(batch)
        assert step.metrics.read().loss == pytest.approx(eager.metrics.read().loss, rel=tolerance)
    for ours, theirs in zip(step.average.model.parameters(), eager.average.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.gpu
def test_gpu_lookahead_corrects_the_weights_that_the_graph_reads(prepared):
    """Its corrections come between replays; the captured step must go on from them as the eager one does."""
    device = torch.device("cuda")
    eager, step = (_step(prepared, device=device, lr=0.01, lookahead=3) for _ in range(2))
    batches = list(_batches(prepared, 10, device))
    captured = CapturedStep(step, batches[0])
    for number, batch in enumerate(batches):
        for one, run in ((eager, eager), (step, captured)):
            run(batch)
            one.after(number + 1, 10)
    for ours, theirs, slow in zip(step.model.parameters(), eager.model.parameters(), step.lookahead.slow, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
        assert torch.equal(ours, slow)


@pytest.mark.gpu
def test_gpu_captured_step_refuses_another_shape(prepared):
    device = torch.device("cuda")
    batch = next(_batches(prepared, 1, device))
    captured = CapturedStep(_step(prepared, device=device), batch)
    with pytest.raises(ValueError, match="indices is"):
        captured(batch._replace(indices=batch.indices[:5]))
    with pytest.raises(ValueError, match="images moved"):
        captured(batch._replace(images=batch.images.clone()))
    with pytest.raises(ValueError, match="this is a Batch, but the step was captured for a SplitView"):
        captured(_gathered(batch))
