"""The step's kernels compiled for an H100, on a machine that needs no GPU:
``python -m fast_train.benchmarks.lab.registers``.

Registers and shared memory decide how many programs an SM (a streaming multiprocessor) holds at once. Spilled bytes and
narrow loads cost memory traffic that no source line shows, and a product without warp groups (wgmma) costs half of the
matrix rate. Triton compiles for bfloat16 and 64 channels (convolutions: 128 as well), the ptxas that comes with it
assembles. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fast_train.benchmarks.instrument.flags import Common, plain_parser, run_program
from fast_train.common.command import complain
from fast_train.kernels.tiling import join_options, tiles_of, tiling, tma_tiles_of
from fast_train.pipeline.errors import ConfigError

PROGRAM = "python -m fast_train.benchmarks.lab.registers"
CAPABILITY = 90
# What one SM of compute capability 9.0 has: registers, threads, bytes of shared memory. Each program takes 1,024 bytes
# more than it asks for (CUDA C++ programming guide, table "technical specifications").
_REGISTERS, _THREADS, _SHARED, _SHARED_MORE = 65_536, 2_048, 228 << 10, 1 << 10
# Pointers to bfloat16; all others point to float32.
_ACTIVATIONS = {f"{name}_ptr" for name in ("x", "y", "dy", "dy2", "dz", "dx", "residual", "shortcut", "dshortcut")}
_ACTIVATIONS |= {"out_ptr", "dout_ptr", "filters_ptr"}
# Divisible by 16 in every layer, which Triton finds out at a launch; the sides of layer4's images are not.
_ROUND = ("n_rows", "n_cols", "depth")
_SIDES = ("height", "width", "out_height", "out_width")
_TYPES = {**dict.fromkeys((*_ROUND, *_SIDES, "n_chunks", "n_steps"), "i32"), "momentum": "fp32", "eps": "fp32"}
_BITS_OUT, _BITS_IN = ({**_TYPES, name: "*u8"} for name in ("bits_ptr", "y_ptr"))
_CONVOLUTIONS = ("convolution_kernel", "data_gradient_kernel")
_WHOLE = {
    **dict.fromkeys(("data_ptr", "crops_ptr"), "*u8"),
    **dict.fromkeys(("offsets_ptr", "indices_ptr", "bases_ptr", "epoch_ptr"), "*i64"),
    **dict.fromkeys(("heights_ptr", "widths_ptr", "draws_ptr", "weights_ptr", "firsts_ptr", "greys_ptr"), "*i32"),
    **dict.fromkeys(("ratios_ptr", "erased_ptr"), "*i32"),
    "table_ptr": "*bf16",
    "seed": "i64",
    "count": "i32",
}


class Compiled(NamedTuple):
    """A kernel as it is launched. constants: its constexpr arguments."""

    kernel: Any
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    types: Mapping[str, str] = _TYPES


def measure() -> list[dict[str, Any]]:
    """A record for each kernel: registers a thread, bytes of shared memory, programs that fit on an SM, bytes spilled,
    16-byte loads, loads by TMA, waits for the kernel before and starts of the next one, loads ahead of the wait (None
    without one), products of warp groups, and whether ptxas lets each of them wait for the one before. Raises Triton's
    errors, and RuntimeError where ptxas fails.

    ConfigError where Triton is not installed, or interprets its kernels (TRITON_INTERPRET) rather than compiling them.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("Triton is not installed; it comes with torch on Linux")
    return [_compile(case) for case in (*_norms(), *_convolutions(), *_crops())]


def _norms() -> list[Compiled]:
    import triton.language as tl

    from fast_train.kernels import batchnorm_triton as norm
    from fast_train.kernels import rows_triton as rows

    tiles = tiling(1024 * 32 * 32, 64)
    blocks, join = tiles.blocks, join_options(tiles.n_chunks)
    plain = {**dict.fromkeys(("SECOND", "FROM_Y", "BITS", "STORE", "SHORTCUT"), False), "RELU": True, **blocks}
    residual = {**plain, "SECOND": True, "STORE": True}
    result = {"RELU": True, "SHORTCUT": False, **blocks}
    joined = {"SHORTCUT": True}
    cases = [
        Compiled(norm.moments_kernel, blocks),
        Compiled(rows.statistics_kernel, {"BLOCK_M": tiles.block_m, "CHUNKS": join["CHUNKS"]}),
        Compiled(norm.apply_kernel, {**result, "RESIDUAL": False, "BITS": False}),
        Compiled(norm.apply_kernel, {**result, "RESIDUAL": True, "BITS": True}, types=_BITS_OUT),
        Compiled(norm.apply_kernel, {**result, "RESIDUAL": True, "BITS": True, **joined}, types=_BITS_OUT),
        Compiled(norm.gradient_sums_kernel, plain),
        Compiled(norm.gradient_sums_kernel, {**residual, "FROM_Y": True}),
        Compiled(norm.gradient_sums_kernel, {**residual, "BITS": True}, types=_BITS_IN),
        Compiled(norm.gradient_sums_kernel, {**residual, "BITS": True, **joined}, types=_BITS_IN),
        Compiled(rows.join_sums_kernel, {"CHUNKS": join["CHUNKS"], **joined}),
        Compiled(norm.input_gradient_kernel, {"RELU": True, "SHORTCUT": False, **blocks}),
        Compiled(norm.input_gradient_kernel, {"RELU": False, **joined, **blocks}),
    ]
    dependent = {case.kernel.__name__: case for case in cases}.values() if hasattr(tl.extra.cuda, "gdc_wait") else ()
    return [
        *(case._replace(constants={**case.constants, "PDL": False}) for case in cases),
        *(case._replace(constants={**case.constants, "PDL": True}) for case in dependent),
    ]


def _convolutions() -> Iterator[Compiled]:
    from fast_train.kernels import convolution_triton as kernels

    # Images of layer1 and of layer2.
    for (channels, width), tma in product(((64, 32), (128, 16)), (False, True)):
        tiles = tma_tiles_of(channels, channels, width, width) if tma else tiles_of(channels, channels, itemsize=2)
        assert tiles is not None
        for kernel, tile, flags in (
            (kernels.convolution_kernel, tiles.forward, {"STRIDE": 1}),
            (kernels.data_gradient_kernel, tiles.gradient, {"SECOND": False, "FROM_Y": False}),
            (kernels.data_gradient_kernel, tiles.gradient, {"SECOND": True, "FROM_Y": True}),
        ):
            constants = {
                "SIZE": 3,
                "UPCAST": False,
                "TMA": tma,
                "KEEP": tile.keeps(channels),
                **flags,
                **tile.blocks,
            }
            read = "dout_ptr" if "SECOND" in flags else "x_ptr"
            pixels = f"tensordesc<bf16[1,{tile.block_m // width},{width},64]>"
            types = {**_TYPES, read: pixels, "filters_ptr": "tensordesc<bf16[64,64]>"} if tma else _TYPES
            yield Compiled(kernel, constants, tile.num_warps, tile.num_stages, types)


def _crops() -> Iterator[Compiled]:
    """Random crops of 224 pixels, without colours and with all that there is."""
    from fast_train.kernels import resized_crop_triton as kernels
    from fast_train.kernels.spec import CropSpec

    plain = CropSpec(size=224, scale=(0.08, 1.0), flip=True)
    full = replace(plain, brightness=0.4, contrast=0.4, saturation=0.4, erase=0.25)
    types = {**_WHOLE, "out_ptr": "*i32"}
    for spec in (plain, full):
        yield Compiled(kernels.draw_kernel, kernels.draw_constants(spec, gather=True), types=types)
    types["out_ptr"] = "*bf16"
    for spec in (plain, full):
        yield Compiled(kernels.crop_kernel, kernels.crop_constants(spec, channels=3, gather=True), types=types)
    yield Compiled(kernels.finish_kernel, kernels.shape_constants(224, channels=3), types=types)


def _compile(case: Compiled) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants = case.kernel, case.constants

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return case.types.get(name, "*bf16" if name in _ACTIVATIONS else "*fp32")

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = [n for n, name in enumerate(signature) if signature[name].startswith("*") or name in _ROUND]
    source = ASTSource(kernel, signature, constants, {(n,): [["tt.divisibility", 16]] for n in aligned})
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    ptx, threads = compiled.asm["ptx"], 32 * case.num_warps
    before, wait, _ = ptx.partition("griddepcontrol.wait")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name=sm_{CAPABILITY}a", str(path), "-o", os.devnull]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = done.stderr
    if done.returncode:
        raise RuntimeError(f"ptxas failed on {kernel.__name__}: {said[:200]}")
    registers = _number(r"Used (\d+) registers", said)
    return {
        "kernel": kernel.__name__,
        "constants": {name: value for name, value in constants.items() if isinstance(value, bool)},
        "registers": registers,
        "columns": constants.get("BLOCK_N"),
        "shared_bytes": compiled.metadata.shared,
        "programs_a_processor": min(
            _REGISTERS // (threads * registers),
            _THREADS // threads,
            _SHARED // (compiled.metadata.shared + _SHARED_MORE),
        ),
        "spilled_bytes": _number(r"(\d+) bytes spill stores", said) + _number(r"(\d+) bytes spill loads", said),
        "wide_loads": len(re.findall(r"ld\.global[\w.:]*v4\.b32|cp\.async[\w.]*global [^;]*0x10", ptx)),
        "tma_loads": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        "dependency_controls": len(re.findall(r"griddepcontrol\.", ptx)),
        "loads_before_wait": before.count("ld.global") if wait else None,
        "group_products": len(re.findall(r"wgmma\.mma_async", ptx)),
        "serialized": "wgmma.mma_async instructions are serialized" in said,
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"ptxas did not say '{pattern}'; it said: {text[:200]}")
    return int(found[1])


def main(arguments: list[str] | None = None) -> int:
    """Run the command, see `run_program`; status 1 where a kernel does not compile."""
    parser = plain_parser(PROGRAM, "Compile the step's kernels for an H100, and count what they take of it.")
    return run_program(parser, Common, lambda flags, _: _show(flags.debug), arguments)


def _show(debug: bool) -> int:
    try:
        records = measure()
    except ConfigError:
        raise
    except Exception as error:
        # Triton, its LLVM and ptxas each have errors of their own.
        complain(PROGRAM, error, debug=debug)
        return 1
    columns = (
        "registers",
        "shared_bytes",
        "programs_a_processor",
        "spilled_bytes",
        "wide_loads",
        "group_products",
        "serialized",
    )
    print(f"{'kernel':<52}" + "".join(f" {column.split('_')[0]:>9}" for column in columns))
    for record in records:
        name = record["kernel"] + (f", {record['columns']} columns" if record["kernel"] in _CONVOLUTIONS else "")
        name += "".join(f" {flag}" for flag, on in record["constants"].items() if on)
        print(f"{name:<52}" + "".join(f" {record[column]:>9}" for column in columns))
    print(json.dumps(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
