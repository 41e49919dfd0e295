"""Lookahead against its definition written out."""

import torch
from torch import nn

from fast_train.pipeline.optim.averaging import Lookahead


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _move(model, number):
    """Stands for a training step: weights and running statistics move, the counter counts."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value += 0.1 * torch.randn(value.shape, generator=generator)
            else:
                value += 1


def test_follows_its_definition():
    """Every 5 of 13 steps, and at the end the slow weights, which saw step 10 last."""
    model, plain = _net(), _net()
    lookahead = Lookahead(model, 5, 0.9)
    slow = [v.detach().double().clone() for v in plain.state_dict().values()]
    for done in range(1, 14):
        _move(model, done)
        _move(plain, done)
        lookahead.after_step(done, 13)
        values = list(plain.state_dict().values())
        if done % 5 == 0:
            kept = 0.9**5 * (done / 13) ** 3
            slow = [kept * s + (1 - kept) * v.double() for s, v in zip(slow, values, strict=True)]
        if done % 5 == 0 or done == 13:
            for value, s in zip(values, slow, strict=True):
                if value.is_floating_point():
                    value.copy_(s)
        for ours, theirs in zip(model.state_dict().values(), values, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 13


def test_leaves_the_model_alone_between_its_corrections():
    model = _net()
    lookahead = Lookahead(model, 5, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for done in (1, 4, 6, 99):
        lookahead.after_step(done, 100)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
