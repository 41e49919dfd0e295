"""One training step: augmentation, forward, backward, optimizer, metrics, without a host synchronisation.

The same method runs eagerly on any device and, on CUDA, is captured whole by `pipeline.engine.graph`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_train.pipeline.config.settings import OptimizerConfig
from fast_train.pipeline.engine.augmentation import Augmentation
from fast_train.pipeline.engine.metrics import Metrics
from fast_train.pipeline.engine.reduction import BYTES, FIRST_BYTES, MeanOverRanks
from fast_train.pipeline.loaders import AnyBatch
from fast_train.pipeline.optim.averaging import Lookahead, WeightAverage
from fast_train.pipeline.optim.optimizer import build_optimizer, optimizer_tensors
from fast_train.pipeline.ranks import current

ForwardLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainStep:
    """A model and all that a training step of it needs. On several ranks each has one, of its part of the batch, and
    what it changes is the same on all of them.

    model: on its device, in its memory format. amp: the autocast type, None for float32; float16 scales the loss
    (torch.amp.GradScaler). compile: the forward pass, the loss and through it the backward pass by torch.compile, in
    its mode compile_mode. proxy: chooses ``keep`` images of each batch, which the model is trained on; None for all.
    """

    def __init__(
        self,
        model: nn.Module,
        augmenter: Augmentation,
        config: OptimizerConfig,
        *,
        device: torch.device,
        amp: torch.dtype | None = None,
        compile: bool = False,
        compile_mode: str = "default",
        proxy: Proxy | None = None,
        keep: int = 0,
    ) -> None:
        self.model, self.augmenter, self.config = model, augmenter, config
        self.device, self.amp = device, amp
        self.proxy, self._keep = proxy, keep
        self.optimizer, self.rates = build_optimizer(model, config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.lookahead = Lookahead(model, config.lookahead, config.lookahead_decay) if config.lookahead else None
        self.metrics = Metrics(device)
        self._over_ranks = MeanOverRanks(model, current()) if current().joined else None
        self._forward_loss: ForwardLoss = self._plain_forward_loss
        if compile:
            compiled = _compile_for_any_threads if device.type == "cpu" else _compile
            self._forward_loss = compiled(self._plain_forward_loss, compile_mode)

    def leave_uncompiled(self) -> None:
        """Run forward pass and loss as they are, where they can't be compiled."""
        self._forward_loss = self._plain_forward_loss
        if self.proxy:
            self.proxy.leave_uncompiled()

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is worth evaluating: the averaged one where there is one."""
        return self.average.model if self.average else self.model

    def set_rate(self, scheduled: float, *, epochs: float = 0.0) -> None:
        """The learning rate of the next steps, and what follows for each group of parameters: see `Rates.set`."""
        self.rates.set(scheduled, epochs)
        if self.proxy:
            self.proxy.set_rate(scheduled, epochs=epochs)

    def __call__(self, batch: AnyBatch) -> None:
        images, labels = self.augmenter(batch), batch.targets().to(self.device)
        if self.proxy:
            chosen = self.proxy.hardest(images, labels, self._keep)
            images, labels = images[chosen], labels[chosen]
        # None, not zeros: the backward pass then writes gradients instead of adding to them.
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._forward_loss(images, labels)
        self._descend(loss)
        self.metrics.add(loss, correct, len(labels))

    def _descend(self, loss: Tensor) -> None:
        """Move the weights by the gradient of ``loss``, 0-D."""
        self.scaler.scale(loss).backward()
        if self._over_ranks:
            self._over_ranks.finish()
        if self.config.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()

    def after(self, done: int, total: int) -> None:
        """Call it after step number ``done`` (1-based) of ``total``. Lookahead's correction is due in some steps only,
        and so it stays out of the captured graph."""
        if self.lookahead:
            self.lookahead.after_step(done, total)

    def _plain_forward_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """images: [N, C, H, W]; labels: int64 [N]. The mean loss and the number of hits, both 0-D."""
        return self._forward(images, labels, reduction="mean")

    def _forward(self, images: Tensor, labels: Tensor, *, reduction: str) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits = self.model(images)
        logits = logits.float()  # [N, K]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing, reduction=reduction)
        return loss, (logits.argmax(dim=1) == labels).sum()

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether each weight and statistic, of the average and the proxy too, is a finite number. The host waits."""
        models = [part.model for part in (self, self.average, self.proxy) if part]
        values = [t for model in models for t in model.state_dict().values() if t.is_floating_point()]
        # The largest of all magnitudes: on a GPU a few launches, where a test of each tensor would take hundreds.
        return bool(nn.utils.get_total_norm(values, norm_type=math.inf).isfinite())

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that a step changes, but the scalers'."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from optimizer_tensors(self.optimizer)
        if self.average:
            yield from self.average.model.parameters()
            yield from self.average.model.buffers()
        if self.lookahead:
            yield from self.lookahead.slow
        if self.proxy:
            yield from self.proxy.tensors()
        yield self.metrics.sums

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Undo, in place, whatever steps inside the block changed: weights, statistics, momentum, scale."""
        with torch.no_grad():
            saved = [(tensor, tensor.detach().clone()) for tensor in self.tensors()]
        steps = [self, self.proxy] if self.proxy else [self]
        scalers = [step.scaler.state_dict() for step in steps]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in saved:
                    tensor.copy_(value)
            for step, scaler in zip(steps, scalers, strict=True):
                step.scaler.load_state_dict(scaler)
                step.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that the continuation needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "lookahead": self.lookahead.slow if self.lookahead else None,
            "scaler": self.scaler.state_dict(),
            "metrics": self.metrics.state(),
            "proxy": self.proxy.state_dict() if self.proxy else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, written into the tensors that are in place."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.model.load_state_dict(state["average"])
        saved = state["optimizer"]["state"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        with torch.no_grad():
            for number, parameter in enumerate(parameters):
                for name, value in saved.get(number, {}).items():
                    self.optimizer.state[parameter][name].copy_(value)
            if self.lookahead:
                torch._foreach_copy_(self.lookahead.slow, state["lookahead"])
            self.metrics.load(state["metrics"])
        # A run that was not in float16 saved an empty one: a scaler that is needed all the same starts afresh.
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.proxy:
            self.proxy.load_state_dict(state["proxy"])


class Proxy(TrainStep):
    """A small network that finds the images of a batch which are worth training another one on: the hardest for
    itself. It is trained on the same ones. (In airbench96_faster a fourth of the steps train it.)"""

    def hardest(self, images: Tensor, labels: Tensor, count: int) -> Tensor:
        """The rows of the ``count`` highest losses, int64 [count], from which it learns. images: [N, C, H, W]; labels:
        int64 [N]."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, _ = self._forward_loss(images, labels)
        highest = losses.topk(count)
        self._descend(highest.values.mean())
        return highest.indices

    def _plain_forward_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As of `TrainStep`, with the loss of each image, [N]."""
        return self._forward(images, labels, reduction="none")


def _compile(function: ForwardLoss, mode: str) -> ForwardLoss:
    # Not dynamic: a second step of the process, of another batch size, is compiled for its own shape too.
    if not current().joined:
        return torch.compile(function, mode=mode, dynamic=False)
    options = torch._inductor.list_mode_options(mode)

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return _in_parts(graph, inputs, partial(torch._inductor.compile, options=options))

    return torch.compile(function, backend=backend, dynamic=False)


def _in_parts(graph: torch.fx.GraphModule, inputs: list[Any], compile: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a graph in parts, where this process is a rank: a backward pass of one part gives all gradients at its
    end, and none of them could leave before. By torch's own division for its DistributedDataParallel."""
    if not current().joined:
        return compile(graph, inputs)
    # Here and not above: no other run needs it.
    from torch._dynamo.backends.distributed import DDPOptimizer

    return DDPOptimizer(BYTES, compile, FIRST_BYTES).compile_fn(graph, inputs)


def _compile_for_any_threads(function: ForwardLoss, mode: str) -> ForwardLoss:
    """As `_compile`, on the CPU, with code that heeds ``torch.set_num_threads``. By itself torch.compile builds the
    number of threads into its code, and compiles anew for another one."""
    options = {**torch._inductor.list_mode_options(mode), "cpp.dynamic_threads": True}
    compiled_with = wanted = torch.get_num_threads()

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        code = _in_parts(graph, inputs, partial(torch._inductor.compile, options=options))

        def run(*arguments: Any) -> Any:
            torch.set_num_threads(wanted)
            return code(*arguments)

        return run

    compiled = torch.compile(function, backend=backend, dynamic=False)

    def call(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal wanted
        wanted = torch.get_num_threads()
        # Dynamo, which sees this number at each call, would compile anew for another one.
        torch.set_num_threads(compiled_with)
        return compiled(images, labels)

    return call
