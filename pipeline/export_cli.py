"""The command `fast-export`: a run's network as a file for other programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fast_train.common.command import Parser, flag_path, run_command
from fast_train.common.startup import quick_imports
from fast_train.common.text import format_bytes, show_path
from fast_train.pipeline.paths import EXPORTS, of_export

PROGRAM = "fast-export"
_EPILOG = """formats:
  onnx     bytes uint8 [N, H, W, C] to logits float32 [N, K], normalised inside; pip install 'fast-train[onnx]'
  pt2      the same for torch.export.load
  weights  safetensors, under torchvision's names; what they take is normalised by the metadata's mean and std
Classes and how images are brought to the network's size stand in each file's metadata: docs/commands.md

exit status: 0 done, 2 bad input, 129/130/143 stopped by a signal"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    run: Path
    to: str
    out: Path | None
    overwrite: bool
    debug: bool


def build_parser() -> Parser:
    """The parser of `Flags`."""
    parser = Parser(
        prog=PROGRAM,
        description="Write a trained network as a file for other programs.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("run", type=flag_path, metavar="RUN", help="a run's folder, or a checkpoint")
    add("--to", default="onnx", metavar="|".join(EXPORTS), help="the format (default: onnx)")
    add("--out", type=flag_path, metavar="FILE", help="where it goes (default: beside the checkpoint, by RUN's name)")
    add("--overwrite", action="store_true", help="replace a file that is there, once the new one is whole")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    flags = build_parser().parse(Flags, arguments)
    return run_command(PROGRAM, lambda: _run(flags), debug=flags.debug, ends_process=arguments is None)


def _run(flags: Flags) -> int:
    path = of_export(flags.run, flags.to, flags.out, overwrite=flags.overwrite)
    with quick_imports():
        from fast_train.pipeline.run.export import export
        from fast_train.pipeline.run.record import load
    saved = load(flags.run)
    for note in saved.notes:
        print(note)
    made = export(saved, flags.to, path)
    print(f"{show_path(path)}: {format_bytes(path.stat().st_size)}; {made.metadata['input']}")
    if made.difference is not None:
        print(f"compared with PyTorch: logits of random images differ by at most {made.difference:.1g}")
    elif flags.to == "onnx":
        print("not compared with PyTorch: onnxruntime is not installed; pip install 'fast-train[onnx]'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
