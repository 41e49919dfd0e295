"""The command ``prep-data``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from fast_train.common.command import Parser, run_command
from fast_train.common.files import user_path
from fast_train.common.text import show
from fast_train.data_prep.errors import BadFilesError, DownloadError, PreparedSetError

PROGRAM = "prep-data"
EXIT_DOWNLOAD = 3
_BAD_FILES_SHOWN = 10

_EPILOG = """\
examples:
  prep-data                                       CIFAR-10, downloaded, into data/cifar10
  prep-data --source cifar-10-python.tar.gz       the same from a file that is here
  prep-data --dataset folder:photos               your images: photos/CLASS/*.jpg, or photos/train and photos/test
  prep-data --dataset csv:photos.csv              images that a file lists: columns path, label and, if you like, split
  prep-data --out data/cifar10 --verify           is it still what was written?

exit status: 0 done, 2 bad input, 3 the data could not be downloaded, 129/130/143 stopped by a signal
"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The command line. Those of `SourceOptions` and `FormatOptions` have the names of their fields."""

    dataset: str
    out: str | None
    formats: str
    overwrite: bool
    verify: bool
    debug: bool
    source: str | None
    size: int | None
    shorter_side: int | None
    store: str | None
    val_fraction: float | None
    test_fraction: float | None
    split_seed: int | None
    skip_bad: bool
    workers: int | None
    background: str | None
    fit: str | None
    csv_root: str | None
    csv_columns: str | None
    ffcv_mode: str
    dali_mode: str
    jpeg_quality: int | None
    jpeg_share: float


def build_parser() -> Parser:
    """The parser of `Flags`, with a newcomer's defaults."""
    parser = Parser(
        prog=PROGRAM,
        description="Turn images into a prepared set: one folder with a manifest, ready for fast-train.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--dataset",
        default="cifar10",
        help="cifar10 (default), cifar100, folder:DIR, csv:FILE, parquet:PATH or synthetic (made-up images)",
    )
    add("--out", metavar="DIR", help="where the set goes (default: data/ and the data set's name)")
    add("--formats", default="packed", metavar="LIST", help="packed (default), ffcv, dali; with commas between")
    add("--overwrite", action="store_true", help="replace another set that is there, once the new one is whole")
    add("--verify", action="store_true", help="only check the set that is there, by the SHA-256 of every file")
    add("--debug", action="store_true", help="on an error, the trace and all names")
    group = parser.add_argument_group("cifar10, cifar100")
    group.add_argument(
        "--source",
        metavar="PLACE",
        help="a local archive, a folder of its batches or parquet files, a mirror's http(s) address, or hub",
    )
    _add_folder_flags(parser)
    _add_csv_flags(parser)
    _add_format_flags(parser)
    return parser


def _add_folder_flags(parser: Parser) -> None:
    add = parser.add_argument_group("folder:DIR, csv:FILE, parquet:PATH").add_argument
    add("--size", type=int, metavar="N", help="store squares of NxN pixels (default: images keep their shapes)")
    add(
        "--shorter-side",
        type=int,
        metavar="N",
        help="scale what is larger down to N pixels on the shorter side (default: 256), never up; JPEG files that need "
        "not be scaled are stored byte for byte",
    )
    add("--store", metavar="KIND", help="what other files than JPEG become: png (default), without loss, or jpeg")
    add(
        "--test-fraction",
        type=float,
        metavar="F",
        help="fraction kept for testing if there is no test or validation split (default: 0.2)",
    )
    add(
        "--val-fraction",
        type=float,
        metavar="F",
        help="fraction of the training images kept for validation if there is none; of CIFAR too (default: none)",
    )
    add("--split-seed", type=int, metavar="N", help="seed of these two draws (default: 0)")
    add("--skip-bad", action="store_true", help="leave out files that are not readable images")
    add("--workers", type=int, metavar="N", help="processes that decode (default: one per core)")
    add(
        "--background",
        metavar="COLOUR",
        help="what shows behind transparent images and beside padded ones: a name or R,G,B (default: grey, on which "
        "black and white show)",
    )
    add(
        "--fit",
        metavar="HOW",
        help="with --size, how images of another shape are stored: crop (default: scaled to cover, cropped at the "
        "centre), pad (scaled to lie within, on the background), or stretch",
    )


def _add_csv_flags(parser: Parser) -> None:
    add = parser.add_argument_group("csv:FILE").add_argument
    add("--csv-root", metavar="DIR", help="where relative paths begin (default: the folder of FILE)")
    add(
        "--csv-columns",
        metavar="LIST",
        help="path=NAME,label=NAME,split=NAME, or some of these (default: by their usual names); split= takes none",
    )


def _add_format_flags(parser: Parser) -> None:
    add = parser.add_argument_group("formats").add_argument
    add(
        "--ffcv-mode",
        default="raw",
        metavar="MODE",
        help="raw (default), jpg, or proportion: --jpeg-share of the images as JPEG",
    )
    add("--dali-mode", default="raw", metavar="MODE", help="raw (default) or jpg (for large images)")
    add(
        "--jpeg-quality",
        type=int,
        metavar="N",
        help="of what is encoded, 1 to 100 (default: 90; 95 of images that keep their shapes)",
    )
    add("--jpeg-share", type=float, default=0.5, metavar="F", help="fraction for --ffcv-mode proportion (default: 0.5)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    flags = build_parser().parse(Flags, arguments)
    return run_command(
        PROGRAM,
        lambda: _run(flags),
        debug=flags.debug,
        ends_process=arguments is None,
        interrupted="no half-made set was left behind",
        statuses={DownloadError: EXIT_DOWNLOAD},
        explain=_explain,
    )


def _explain(error: Exception) -> Exception | None:
    if isinstance(error, MemoryError):
        return MemoryError("not enough memory; give a smaller --size or fewer --workers")
    return None


def _run(flags: Flags) -> int:
    # After parsing: --help needs none of it.
    from fast_train.common.console import Display
    from fast_train.data_prep.formats import FormatOptions
    from fast_train.data_prep.prepare import Request, default_place, prepare, verify
    from fast_train.data_prep.sources import SourceOptions, build_source

    display = Display()
    options = SourceOptions(**{field.name: getattr(flags, field.name) for field in fields(SourceOptions)})
    if flags.out == "":
        raise PreparedSetError("--out is empty; give it a folder, or leave it out")
    out = None if flags.out is None else user_path(flags.out)
    if flags.verify:
        verify(out or default_place(build_source(flags.dataset, options, display)), display)
        return 0
    request = Request(
        dataset=flags.dataset,
        out=out,
        formats=tuple(dict.fromkeys(name.strip() for name in flags.formats.split(",") if name.strip())),
        encoding=FormatOptions(**{field.name: getattr(flags, field.name) for field in fields(FormatOptions)}),
        overwrite=flags.overwrite,
        options=options,
    )
    try:
        prepare(request, display)
    except BadFilesError as error:
        _print_bad_files(error, everything=flags.debug)
        raise
    return 0


def _print_bad_files(error: BadFilesError, *, everything: bool) -> None:
    shown = error.files if everything else error.files[:_BAD_FILES_SHOWN]
    for name, reason in shown:
        print(f"  {show(name)}: {reason}", file=sys.stderr)
    if len(shown) < len(error.files):
        print(f"  ... and {len(error.files) - len(shown):,} more (--debug names them all)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
