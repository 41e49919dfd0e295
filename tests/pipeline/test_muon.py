"""Muon against its definition written out per filter, and the groups that an optimizer is made of."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fast_train.pipeline.config.settings import ModelConfig, OptimizerConfig
from fast_train.pipeline.models import build_model, initialise_from_data
from fast_train.pipeline.optim.muon import orthogonalise
from fast_train.pipeline.optim.optimizer import FadesOut, build_optimizer, optimizer_tensors

CPU = torch.device("cpu")
SETTINGS = {
    "name": "muon", "lr": 0.2, "bias_lr": 3.0, "whiten_lr": 2.0, "head_lr": 0.5, "momentum": 0.85, "muon_momentum": 0.6,
    "weight_decay": 0.01, "decay_all": True, "muon_iterations": 3,
}  # fmt: skip


def _images(count=8, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def _speednet():
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="speednet8", num_classes=3))
    initialise_from_data(model, _images())
    return model.to(memory_format=torch.channels_last)


def _gradients(model, number):
    """Random ones, of every parameter that wants one."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=torch.preserve_format)
            if parameter.dim() == 4:
                parameter.grad = parameter.grad.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 64), (4, 90, 20), (1, 5, 200)])
def test_singular_values_come_near_one_and_their_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = orthogonalise(matrices, 5).double()
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    # Of a square random matrix the smallest singular values are almost zero, and grow more slowly.
    near_one = (values > 0.65) & (values < 1.25)
    assert near_one.double().mean() > (0.9 if shape[1] == shape[2] else 0.999)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    core = u.mT @ result @ vh.mT
    off_diagonal = core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))
    assert float(off_diagonal.abs().max()) < 1e-3


def test_a_zero_matrix_stays_zero():
    assert not orthogonalise(torch.zeros(1, 4, 9), 5).any()


def _plain_newton_schulz(matrix, iterations):
    x = matrix / matrix.norm()
    for _ in range(iterations):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def _plain_step(model, momenta, rates, iterations):
    """One step in float64, parameter by parameter; ``rates`` by kind, as in SETTINGS."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient, value = parameter.grad.double(), parameter.data
        if parameter.dim() == 4:
            momenta[name] = 0.6 * momenta.get(name, 0) + gradient
            ahead = gradient + 0.6 * momenta[name]
            direction = _plain_newton_schulz(ahead.reshape(len(ahead), -1), iterations).view(ahead.shape)
            value.copy_(value * len(value) ** 0.5 / value.norm() - rates["filters"] * direction)
            continue
        kind = "whiten" if name == "whiten.bias" else "head" if name == "fc.weight" else "bias"
        peak = {"whiten": 2.0, "head": 0.5, "bias": 3.0}[kind]
        # A step at the peak takes off lr * weight_decay, at every rate.
        gradient = gradient + 0.01 * 0.2 / peak * value
        momenta[name] = 0.85 * momenta.get(name, 0) + gradient
        value.sub_(rates[kind] * (gradient + 0.85 * momenta[name]))


def test_steps_equal_the_plain_definition():
    """Five steps at changing rates. The model's float32 against float64: a few units in the last place a step."""
    model = _speednet()
    plain = copy.deepcopy(model).double()
    (optimizer, rates), momenta = build_optimizer(model, OptimizerConfig(**SETTINGS), CPU), {}
    for number in range(5):
        share, whitening = 1 - number / 5, max(1 - number / 3, 0)
        _gradients(model, number)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            theirs.grad = None if ours.grad is None else ours.grad.double()
        rates.set(0.2 * share, epochs=number)
        optimizer.step()
        moved = {"filters": 0.2 * share, "bias": 3.0 * share, "head": 0.5 * share, "whiten": 2.0 * whitening}
        with torch.no_grad():
            _plain_step(plain, momenta, moved, 3)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_frozen_weights_stay_and_the_whitening_bias_stops():
    model = _speednet()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) == 7  # the whitening filters, and the scales of six BatchNorms
    optimizer, rates = build_optimizer(model, OptimizerConfig(**SETTINGS), CPU)
    bias = [model.whiten.bias.detach().clone()]
    for number, epochs in enumerate((0.0, 1.5, 3.0, 4.0)):
        _gradients(model, number)
        rates.set(0.1, epochs)
        optimizer.step()
        bias.append(model.whiten.bias.detach().clone())
    assert not torch.equal(bias[0], bias[1])
    assert not torch.equal(bias[1], bias[2])
    assert torch.equal(bias[2], bias[3])
    assert torch.equal(bias[3], bias[4])
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_a_whitening_bias_moves_less_and_less_and_then_not_at_all():
    """Whatever the schedule."""
    rate = FadesOut(peak=2.0, over=3)
    rates = [rate(0.1 * step, step / 25) for step in range(200)]
    assert rates[0] == 2
    assert rates[25] == pytest.approx(2 * 2 / 3)
    assert rates[75:] == [0] * 125


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_every_parameter_has_the_rate_and_the_decay_of_its_kind(name):
    model = _speednet()
    optimizer, rates = build_optimizer(model, OptimizerConfig(**{**SETTINGS, "name": name}), CPU)
    rates.set(0.1, epochs=2.25)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    peaks = {"whiten.bias": 2.0, "fc.weight": 0.5}
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in groups
            continue
        group = groups[id(parameter)]
        peak = peaks.get(full_name, 3.0 if parameter.dim() == 1 else 0.2)
        share = 0.25 if full_name == "whiten.bias" else 0.5
        assert float(group["lr"]) == pytest.approx(peak * share), full_name
        if name == "sgd" or parameter.dim() != 4:
            assert group["weight_decay"] * peak == pytest.approx(0.01 * 0.2), full_name


def test_plain_sgd_has_two_groups_and_one_rate():
    optimizer, _ = build_optimizer(build_model(ModelConfig(arch="resnet8")), OptimizerConfig(), CPU)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"]


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_state_is_there_before_the_first_step(name):
    model = _speednet()
    optimizer, _ = build_optimizer(model, OptimizerConfig(**{**SETTINGS, "name": name}), CPU)
    before = [id(tensor) for tensor in optimizer_tensors(optimizer)]
    assert len(before) == sum(p.requires_grad for p in model.parameters())
    _gradients(model, 0)
    optimizer.step()
    assert [id(tensor) for tensor in optimizer_tensors(optimizer)] == before


def test_muon_takes_any_memory_format():
    updated = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        model = _speednet().to(memory_format=memory_format)
        optimizer, _ = build_optimizer(model, OptimizerConfig(**SETTINGS), CPU)
        _gradients(model, 0)
        optimizer.step()
        updated.append(model.layer2.conv1.weight.detach())
    torch.testing.assert_close(updated[0], updated[1], rtol=1e-4, atol=1e-5)


def test_a_scaled_gradient_is_unscaled_and_an_infinite_one_skips_the_step():
    """What torch.amp.GradScaler hands over in float16."""
    model, scaled = _speednet(), _speednet()
    optimizers = [build_optimizer(m, OptimizerConfig(**SETTINGS), CPU)[0] for m in (model, scaled)]
    for m in (model, scaled):
        _gradients(m, 0)
    for parameter in scaled.parameters():
        if parameter.grad is not None:
            parameter.grad *= 1024
    optimizers[1].grad_scale, optimizers[1].found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    for optimizer in optimizers:
        optimizer.step()
    for a, b in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    before = [t.detach().clone() for t in (*scaled.parameters(), *optimizer_tensors(optimizers[1]))]
    for parameter in scaled.parameters():
        if parameter.grad is not None:
            parameter.grad[0] = float("inf") if parameter.dim() == 1 else float("nan")
    optimizers[1].found_inf = torch.tensor(1.0)
    optimizers[1].step()
    after = (*scaled.parameters(), *optimizer_tensors(optimizers[1]))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_muon_trains_a_resnet():
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="resnet8", num_classes=3))
    optimizer, _ = build_optimizer(model, OptimizerConfig(name="muon", lr=0.1, bias_lr=0.5, head_lr=0.5), CPU)
    images, labels = _images(24), torch.arange(24) % 3
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    norms = [float(m.weight.detach().norm()) / m.out_channels**0.5 for m in model.modules() if isinstance(m, nn.Conv2d)]
    # Scaled to 1 before each step, and then moved by 0.1 at most.
    assert all(0.85 < norm < 1.15 for norm in norms)


def test_filters_that_start_at_zero_move_too():
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="preact-resnet8", zero_init_residual=True))
    optimizer, _ = build_optimizer(model, OptimizerConfig(name="muon", lr=0.1), CPU)
    _gradients(model, 0)
    optimizer.step()
    zeroed = model.layer1[0].conv2.weight
    assert float(zeroed.detach().norm()) == pytest.approx(0.1 * 16**0.5, rel=0.15)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.gpu
def test_gpu_directions_are_the_cpus_in_bfloat16():
    """bfloat16 rounds at 2^-8 in each of five iterations."""
    matrices = torch.randn(3, 64, 576, generator=torch.Generator().manual_seed(0))
    ours = orthogonalise(matrices.cuda(), 5)
    assert ours.dtype == torch.bfloat16
    expected = orthogonalise(matrices, 5)
    assert float((ours.float().cpu() - expected).norm() / expected.norm()) < 0.05
