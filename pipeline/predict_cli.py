"""The command `fast-predict`: what a trained network sees in pictures.

What can be refused without torch, which takes seconds to import, is refused before that.
"""

from __future__ import annotations

import codecs
import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from fast_train.common.command import Parser, flag_path, lost, run_command
from fast_train.common.console import Display, PlainConsole
from fast_train.common.files import whole_file
from fast_train.common.startup import quick_imports
from fast_train.common.text import one_line, show
from fast_train.pipeline.config.settings import RunConfig, TestTimeAugmentation
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.paths import check_given, make_folder

PROGRAM = "fast-predict"
_STDIO = "-"
# From so many images on a bar shows how far it is.
_MANY = 200
_EPILOG = """examples:
  fast-predict runs/NAME cat.jpg photos             a line for each picture
  fast-predict runs/NAME photos --csv found.csv     a table; --csv - writes it to standard output
  find . -name '*.jpg' | fast-predict runs/NAME - --top 3

exit status: 0 done, 2 bad input, also where a single picture can't be read: the others are predicted,
  129/130/143 stopped by a signal"""

#: Takes a picture's path, and its most probable classes with their probabilities.
Write = Callable[[str, Sequence[tuple[str, float]]], None]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The command line."""

    checkpoint: Path
    images: list[str]
    top: int
    csv: str | None
    tta: TestTimeAugmentation | None
    device: str
    batch_size: int | None
    debug: bool


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Predict the classes of pictures by a trained network.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("checkpoint", metavar="RUN", type=flag_path, help="a run's folder, or a checkpoint")
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="a picture, or a folder, searched at any depth for what is not hidden; - reads a list, a path a line",
    )
    add("--top", type=int, default=1, metavar="K", help="the K most probable classes (default: 1)")
    add("--csv", metavar="FILE", help="write a table in place of the lines; - for standard output")
    add("--tta", metavar="none|flip|multicrop", help="test-time augmentation (default: as the run was evaluated)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:N or mps (default: auto)")
    add("--batch-size", type=int, metavar="N", help="pictures at once (default: as many as in an evaluation)")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    flags = build_parser().parse(Flags, arguments)
    return run_command(
        PROGRAM, lambda: _run(flags), debug=flags.debug, ends_process=arguments is None, explain=_explain
    )


def _explain(error: Exception) -> Exception | None:
    # Where it is not imported, torch has raised no error.
    memory = sys.modules.get("fast_train.pipeline.engine.memory")
    return memory.memory_error(error) if memory else None


def _run(flags: Flags) -> int:
    _check(flags)
    images = _files(flags.images)
    with quick_imports():
        from fast_train.pipeline.engine.runtime import running
        from fast_train.pipeline.run.predict import TrainedModel
        from fast_train.pipeline.run.record import load
    saved = load(flags.checkpoint)
    print("".join(f"{note}\n" for note in saved.notes), end="", file=sys.stderr)
    model, out, bad = TrainedModel(saved, device=flags.device), sys.stdout, 0
    with running(model.run), _writing(flags, len(model.classes)) as write, _progress(flags, len(images)) as advance:
        predictions = model.each(images, tta=flags.tta, batch_size=flags.batch_size)
        for path, found in zip(images, predictions, strict=True):
            if isinstance(found, ValueError):
                print(f"{PROGRAM}: {one_line(found)}", file=sys.stderr)
                bad += 1
            else:
                ranked = (-found.probabilities).argsort(kind="stable")[: flags.top]
                write(path, [(model.classes[k], float(found.probabilities[k])) for k in ranked])
            advance(1)
            if lost(out) is not False:
                break
    return 2 if bad or lost(out) else 0


def _check(flags: Flags) -> None:
    """ConfigError for what can't work."""
    check_given(flags.checkpoint)
    for flag, value in (("--top", flags.top), ("--batch-size", flags.batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value} is too few; give 1 or more")
    RunConfig(device=flags.device, tta=flags.tta or "none")
    if flags.csv is not None and (os.path.isdir(flags.csv) or not flags.csv):
        raise ConfigError(f"--csv '{show(flags.csv)}' is no file; give the name of one, or -")


def _files(given: Sequence[str]) -> list[str]:
    """The pictures that are meant, those of a folder in natural order."""
    # NumPy, which comes with it, takes a tenth of a second to import.
    from fast_train.data_prep.sources.listing import files_below

    found = []
    for path in _paths(given):
        if os.path.isdir(path):
            below = files_below(Path(path))
            if not below:
                raise ConfigError(f"{show(path)} holds no pictures; give another folder")
            found += [os.path.join(path, name) for name in below]
        else:
            found.append(path)
    if not found:
        raise ConfigError("standard input names no pictures; give a path a line")
    return found


def _paths(given: Sequence[str]) -> Iterator[str]:
    for path in given:
        if path != _STDIO:
            yield path
        elif sys.stdin is not None:
            yield from filter(None, os.fsdecode(sys.stdin.buffer.read()).split("\n"))


@contextmanager
def _writing(flags: Flags, classes: int) -> Iterator[Write]:
    """What writes a prediction, to the standard output of now or to a file, which is there once it is whole."""
    out = sys.stdout
    if flags.csv is None:
        yield lambda path, found: print(
            f"{show(path)}: {', '.join(f'{name} {part:.1%}' for name, part in found)}", file=out
        )
        return
    from fast_train.pipeline.report.predictions import class_cell, file_cell

    numbers = ("", *(f"_{place}" for place in range(2, min(flags.top, classes) + 1)))
    header = ["file", *(f"{what}{number}" for number in numbers for what in ("predicted", "confidence"))]
    if flags.csv != _STDIO:
        make_folder(Path(flags.csv).parent)
    with nullcontext() if flags.csv == _STDIO else whole_file(Path(flags.csv)) as file:
        rows = csv.writer(out if file is None else codecs.getwriter("utf-8")(file), lineterminator="\n")
        rows.writerow(header)
        yield lambda path, found: rows.writerow(
            [file_cell(path), *chain.from_iterable((class_cell(name), f"{part:.6f}") for name, part in found)]
        )


@contextmanager
def _progress(flags: Flags, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, for many pictures whose lines do not show there how far it is."""
    console = PlainConsole(stderr=True)
    lines = flags.csv in (None, _STDIO) and sys.stdout.isatty()
    if total < _MANY or lines or not console.is_terminal:
        yield lambda count: None
        return
    with Display(console).progress("pictures", total) as advance:
        yield advance


if __name__ == "__main__":
    sys.exit(main())
