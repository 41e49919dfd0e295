"""``python -m fast_train.benchmarks.lab.convolutions``: which convolutions are faster with a BatchNorm's sums inside.

The metric: images per second of wall time of one layer (norm, ReLU, convolution, and the sums that the norms around it
need), forward, and forward and backward, as one CUDA graph on one fixed batch in bfloat16. Each shape of the network is
computed by cuDNN with the sums as passes of their own, by cuDNN's graphs with the sums inside where it has them
(`kernels.convolution_cudnn`), and by `kernels.convolution_triton` with several tiles, in turn; the median of five
repeats counts. Before it is timed, each result is compared with the first way's. The last line is JSON.

A tile reads ``rows x columns x depth / warps / stages``; strips by TMA (`kernels.convolution_tma`) differ in depth and
stages. What is faster here belongs in `kernels.tiling`. Of cuDNN's graphs it says what they save in a step, all layers
together, and whether that is worth their keep.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fast_train.benchmarks.instrument.flags import COUNT, Common, measured_by, plain_parser, run_program
from fast_train.pipeline.config.settings import ModelConfig

PROGRAM = "python -m fast_train.benchmarks.lab.convolutions"


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    arch: str = "resnet18"
    batch_size: int = 1024

    def check(self) -> None:
        ModelConfig(arch=self.arch)
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} is too small; give 1 or more")


def main(arguments: list[str] | None = None) -> int:
    """Run the command, see `run_program`; status 1 where a layer could not be measured."""
    parser = plain_parser(PROGRAM, "Compare ways to compute each convolution of a network, with the norms around it.")
    parser.add_argument("--arch", metavar="NAME", help=f"network (default: {Flags.arch})")
    parser.add_argument("--batch-size", **COUNT, help=f"images a batch (default: {Flags.batch_size})")
    return run_program(parser, Flags, measured_by("lab.layers"), arguments)


if __name__ == "__main__":
    sys.exit(main())
