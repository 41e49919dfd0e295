"""``python -m benchmarks.lab.registers``: the BatchNorm kernels compiled for an H100, on a machine that needs no GPU.

Registers of a thread decide how many programs a processor holds at once; spilled bytes and narrow loads cost memory
traffic that no source line shows. Compiled by Triton for bfloat16 of 64 channels and assembled by the ptxas that comes
with it. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CAPABILITY = 90
_THREADS = 128
# Of one processor of compute capability 9.0: registers, and 2,048 threads (CUDA C++ programming guide, table "technical
# specifications").
_REGISTERS, _MOST_PROGRAMS = 65_536, 2_048 // _THREADS
_ACTIVATIONS = {"x", "y", "dy", "dy2", "dx", "residual", "out", "behind", "gradient"}
_NUMBERS = {**dict.fromkeys(("rows", "channels", "chunks", "steps"), "i32"), "momentum": "fp32", "eps": "fp32"}
# Divisible by 16 in every layer, as Triton finds out at a launch.
_ROUND = ("rows", "channels")


def measure() -> list[dict[str, Any]]:
    """A record for each kernel: registers a thread, programs that fit on a processor, bytes spilled, 16-byte loads.

    RuntimeError where Triton interprets its kernels (TRITON_INTERPRET) rather than compiling them.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    return [_compile(*case) for case in _cases()]


def _cases() -> list[tuple[Any, dict[str, Any]]]:
    from kernels import batchnorm_triton as kernels

    tiles = kernels.tiling(1024 * 32 * 32, 64)
    block = {"BLOCK_R": tiles.block_rows, "BLOCK_C": tiles.block_channels}
    flags = ("SECOND", "RELU", "FROM_Y", "STORE")
    return [
        (kernels._moments_kernel, block),
        (kernels._statistics_kernel, {"BLOCK_R": tiles.block_rows, "CHUNKS": tiles.chunks}),
        (kernels._apply_kernel, {"RESIDUAL": False, "RELU": True, **block}),
        (kernels._apply_kernel, {"RESIDUAL": True, "RELU": True, **block}),
        (kernels._gradient_sums_kernel, {**dict(zip(flags, (False, True, False, False), strict=True)), **block}),
        (kernels._gradient_sums_kernel, {**dict.fromkeys(flags, True), **block}),
        (kernels._join_sums_kernel, {"CHUNKS": tiles.chunks}),
        (kernels._input_gradient_kernel, {"RELU": True, **block}),
    ]


def _compile(kernel: Any, constants: dict[str, Any]) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return _NUMBERS.get(name, "*bf16" if name in _ACTIVATIONS else "*fp32")

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = [n for n, name in enumerate(signature) if signature[name].startswith("*") or name in _ROUND]
    source = ASTSource(kernel, signature, constants, {(n,): [["tt.divisibility", 16]] for n in aligned})
    options = {"num_warps": _THREADS // 32}
    ptx = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options).asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name=sm_{CAPABILITY}a", str(path), "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = _number(r"Used (\d+) registers", said)
    return {
        "kernel": kernel.__name__,
        "constants": {name: value for name, value in constants.items() if isinstance(value, bool)},
        "registers": registers,
        "programs_a_processor": min(_REGISTERS // (_THREADS * registers), _MOST_PROGRAMS),
        "spilled_bytes": _number(r"(\d+) bytes spill stores", said) + _number(r"(\d+) bytes spill loads", said),
        "wide_loads": len(re.findall(r"ld\.global[\w.:]*v4\.b32", ptx)),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"ptxas did not say '{pattern}'; it said: {text[:200]}")
    return int(found[1])


def main() -> int:
    """Compile, print; returns the exit status."""
    records = measure()
    print(f"{'kernel':<60} {'registers':>9} {'programs':>9} {'spilled':>8} {'16-byte loads':>14}")
    for record in records:
        name = record["kernel"] + "".join(f" {flag}" for flag, on in record["constants"].items() if on)
        values = (record["registers"], record["programs_a_processor"], record["spilled_bytes"], record["wide_loads"])
        print(f"{name:<60} {values[0]:>9} {values[1]:>9} {values[2]:>8} {values[3]:>14}")
    print(json.dumps(records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
