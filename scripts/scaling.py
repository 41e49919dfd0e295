"""Print the tables of docs/scaling.md: what a step on many GPUs sends, and what then bounds it. Computed, not measured.

python scripts/scaling.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

RANKS = (8, 64, 256, 1024)
GPUS_PER_MACHINE = 8
# An H100 trains ResNet-18 at 32 pixels at 82,700 images/s (docs/performance.md), of 3.3 GFLOP each. The other networks
# are taken to reach as many FLOP/s, which is more than they do: a slower step hides more messages.
FLOPS = 82_700 * 3.34e9
# The part of a step in which gradients can leave: the backward pass.
BACKWARD = 2 / 3
# One message of gradients per 25 MiB, and a small one first.
MESSAGE = 25 << 20


@dataclass(frozen=True)
class Work:
    """parameters, statistics (of BatchNorm): numbers. flops: of a training step, an image. file: bytes of an image."""

    name: str
    parameters: int
    statistics: int
    flops: float
    batch: int
    file: float

    @property
    def gradient_bytes(self) -> int:
        return 4 * (self.parameters + self.statistics)


@dataclass(frozen=True)
class Links:
    """Bytes a second: ``inside`` of each GPU, ``outside`` of each machine. Seconds: of one hop."""

    name: str
    inside: float
    outside: float
    hop_inside: float = 3e-6
    hop_outside: float = 10e-6


WORKS = (
    Work("ResNet-18, 32 px", 11_173_962, 9_600, 3.34e9, 128, 3_072),
    Work("ResNet-50, 32 px", 23_520_842, 53_120, 7.8e9, 128, 3_072),
    Work("ResNet-18, 224 px", 11_689_512, 9_600, 10.9e9, 64, 110e3),
    Work("ResNet-50, 224 px", 25_557_032, 53_120, 24.5e9, 64, 110e3),
)
LINKS = (
    Links("NVLink and 8 x 400 Gb/s a machine", inside=300e9, outside=8 * 45e9),
    Links("PCIe 4.0 and 100 Gb/s a machine", inside=20e9, outside=11e9),
)


def compute_seconds(work: Work) -> float:
    return work.batch * work.flops / FLOPS


def message_seconds(work: Work, links: Links, ranks: int) -> float:
    """A ring passes 2 (R - 1) / R of the bytes through each GPU, and through each machine's network where there are
    several; every message takes the hops of a tree up and down."""
    machines = math.ceil(ranks / GPUS_PER_MACHINE)
    inside = 2 * (ranks - 1) / ranks * work.gradient_bytes / links.inside
    outside = 2 * (machines - 1) / machines * work.gradient_bytes / links.outside
    hops = 2 * math.log2(min(ranks, GPUS_PER_MACHINE)) * links.hop_inside + 2 * math.log2(machines) * links.hop_outside
    messages = 1 + math.ceil(work.gradient_bytes / MESSAGE)
    return max(inside, outside) + messages * hops


def efficiency(work: Work, links: Links, ranks: int) -> float:
    """What the backward pass does not hide is waited for."""
    compute = compute_seconds(work)
    return compute / (compute + max(0.0, message_seconds(work, links, ranks) - BACKWARD * compute))


def rows() -> Iterator[str]:
    yield "| network, batch a GPU | gradients, MB | step, ms | links | " + " | ".join(
        f"{ranks:,} GPUs: ms, efficiency" for ranks in RANKS
    ) + " |"  # fmt: skip
    yield "| --- | --- | --- | --- |" + " --- |" * len(RANKS)
    for work in WORKS:
        for links in LINKS:
            cells = (
                f"{1e3 * message_seconds(work, links, ranks):.2f}, {efficiency(work, links, ranks):.0%}"
                for ranks in RANKS
            )
            yield (
                f"| {work.name}, {work.batch} | {work.gradient_bytes / 1e6:.1f} | {1e3 * compute_seconds(work):.2f} | "
                f"{links.name} | {' | '.join(cells)} |"
            )
    yield ""
    yield "| network | images/s a GPU, at most | read by a GPU, GB/s | " + " | ".join(
        f"{ranks:,} GPUs, GB/s" for ranks in RANKS
    ) + " |"  # fmt: skip
    yield "| --- | --- | --- |" + " --- |" * len(RANKS)
    for work in WORKS:
        rate = FLOPS / work.flops
        cells = (f"{ranks * rate * work.file / 1e9:,.1f}" for ranks in RANKS)
        yield f"| {work.name} | {rate:,.0f} | {rate * work.file / 1e9:.2f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(rows()))
