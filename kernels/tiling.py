"""How the kernels' work is divided among programs: launch heuristics as plain data, without torch or Triton.

Each is a function of shape and type alone. So sums are taken in the same order in every run, and results repeat bit for
bit; an autotuner, which chooses by the clock, would break that.
"""

from __future__ import annotations

from typing import NamedTuple

# Elements of a tile: 16 for each of a program's 128 threads. With twice as many, a program that sums gradients needs
# 128 to 162 registers a thread instead of 94, and three or four of them instead of five fit on an SM of an H100
# (`benchmarks.lab.registers`).
TILE_ELEMENTS = 2048
# 64 channels in bfloat16 are one cache line of 128 bytes.
MAX_BLOCK_N = 64
# Programs that sum: nearly 8 for each of an H100's 132 SMs, and few enough for one program to add up their sums.
MAX_PROGRAMS = 1024
# cuDNN computes wider convolutions. ResNet-18's layers of 64 and 128 channels hold four fifths of the activations'
# bytes, which the joined kernels save; those of 256 and 512 do half of the arithmetic, which cuDNN is best at.
MAX_CHANNELS = 128


class Tiling(NamedTuple):
    """A matrix of n_rows x n_cols (pixels x channels), divided into tiles of block_m x block_n.

    Kernels that sum over rows run ``n_chunks`` programs for each block of columns. Program i takes the row tiles i,
    i + n_chunks, i + 2 * n_chunks ...: ``n_steps`` of them at most.
    """

    n_rows: int
    n_cols: int
    block_m: int
    block_n: int
    n_chunks: int
    n_steps: int

    @property
    def blocks(self) -> dict[str, int]:
        """The sides of a tile, by the names that the kernels give them."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}

    @property
    def chunk_grid(self) -> tuple[int, int]:
        """Of a kernel that sums: a program for each chunk and block of columns."""
        return self.n_chunks, cdiv(self.n_cols, self.block_n)

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Of an elementwise kernel: a program for each tile."""
        return cdiv(self.n_rows, self.block_m), cdiv(self.n_cols, self.block_n)


class Tile(NamedTuple):
    """What one program of a matrix product computes, in Triton's words: block_m x block_n of the result, block_k of the
    inner dimension a step, by num_warps x 32 threads, with the loads of num_stages steps under way.

    programs: how many share the images, whose strips they load by TMA (`kernels.convolution_tma`), for each block of
    columns; 0: one program a tile.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    programs: int = 0

    @property
    def blocks(self) -> dict[str, int]:
        """The sides of a tile, by the names that the kernels give them."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}

    @property
    def options(self) -> dict[str, int]:
        """What a launch takes: the sides, warps and stages."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def keeps(self, depth: int) -> bool:
        """Whether filters of ``depth`` input channels stay in shared memory."""
        return self.programs > 0 and self.block_k == depth

    def chunk(self, n_rows: int, image_rows: int) -> int:
        """Rows of the result that a program computes: a tile, or some whole images."""
        return cdiv(n_rows // image_rows, self.programs) * image_rows if self.programs else self.block_m


class Tiles(NamedTuple):
    """The tile of a convolution, and that of its gradient with respect to its input."""

    forward: Tile
    gradient: Tile


# Three programs of the narrow tile and two of the wide one fit on an SM of an H100, forward
# (`benchmarks.lab.registers`). `benchmarks.lab.convolutions` measures which tile is fastest there.
_NARROW = Tile(block_m=128, block_n=64, block_k=64, num_warps=4, num_stages=3)
_WIDE = Tile(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
# By TMA, by the channels of the result: 192 registers a thread hold three products, and two programs fit on each of an
# H100's 132 SMs. With more warps a thread would not hold a part of each row of a strip. One step of 64 channels deep is
# all of the narrow filters, which then stay in shared memory; nothing is left there for loads ahead.
_BY_TMA = {
    64: Tile(block_m=128, block_n=64, block_k=64, num_warps=4, num_stages=1, programs=264),
    128: Tile(block_m=128, block_n=64, block_k=64, num_warps=4, num_stages=2, programs=132),
}


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def tiling(n_rows: int, n_cols: int) -> Tiling:
    """The division of an activation, taken as a matrix of N*H*W rows and C columns."""
    # 8 channels at least: a byte of bits.
    block_n = min(max(next_power_of_2(n_cols), 8), MAX_BLOCK_N)
    block_m = TILE_ELEMENTS // block_n
    row_tiles = cdiv(n_rows, block_m)
    n_steps = cdiv(row_tiles, max(MAX_PROGRAMS // cdiv(n_cols, block_n), 1))
    return Tiling(n_rows, n_cols, block_m, block_n, cdiv(row_tiles, n_steps), n_steps)


def join_options(n_chunks: int) -> dict[str, int]:
    """Options of a kernel in which one program adds up a channel's chunks: 16 values a thread, or up to 64."""
    chunks = next_power_of_2(n_chunks)
    return {"CHUNKS": chunks, "num_warps": min(max(chunks // 512, 4), 16)}


def tiles_of(out_channels: int, in_channels: int, itemsize: int) -> Tiles | None:
    """The tiles of a convolution, by its channels and the bytes of a value.

    None where cuDNN is to compute the convolution, and a pass of its own the sums.
    """
    if max(out_channels, in_channels) > MAX_CHANNELS:
        return None
    # Half the depth in float32: twice the bytes would not fit into the 100 KB of shared memory of compute capabilities
    # 8.6, 8.9 and 12.0.
    deepest = 64 if itemsize <= 2 else 32

    def chosen(n_cols: int, depth: int) -> Tile:
        return fit(_NARROW if n_cols <= 64 else _WIDE, n_cols, min(depth, deepest))

    return Tiles(forward=chosen(out_channels, in_channels), gradient=chosen(in_channels, out_channels))


def tma_tiles_of(out_channels: int, in_channels: int, height: int, width: int) -> Tiles | None:
    """The tiles of a convolution of 3x3 taps and stride 1 in a half-precision type, loaded by TMA.

    None where it has other numbers of channels, or where a tile would not be two or more whole rows of one image.
    """
    if not {out_channels, in_channels} <= _BY_TMA.keys():
        return None
    tiles = Tiles(forward=_BY_TMA[out_channels], gradient=_BY_TMA[in_channels])
    fits = all(tile.block_m % (2 * width) == 0 and height * width % tile.block_m == 0 for tile in tiles)
    return tiles if fits else None


def fit(tile: Tile, n_cols: int, depth: int) -> Tile:
    """``tile``, no wider and no deeper than the product; but 16 at least, the least that Triton multiplies."""
    block_n, block_k = (max(next_power_of_2(size), 16) for size in (n_cols, depth))
    return tile._replace(block_n=min(tile.block_n, block_n), block_k=min(tile.block_k, block_k))
