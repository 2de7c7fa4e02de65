"""Dot products of rounded rows, in instructions that a compiler does not find by itself.

Written as LLVM instructions, which numba puts into the functions that use them. All take addresses
and strides in bytes. Which of them a processor has is said by `HAS_TILES`, `HAS_INTEGERS`; one that
it has not must not be compiled.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

GROUP = 16
"""Latents in one panel: rows of 16-bit numbers, two coordinates of each latent side by side."""
TILE = 16
"""Rows of a tile, and pairs of coordinates in it."""

_FEATURES: dict[str, bool] = dict(llvm.get_host_cpu_features())
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
I8, I16, I32, I64, FLOAT = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType()


def _may_use_tiles() -> bool:
    """Whether there are tiles of bfloat16 (Intel AMX) and Linux lets this process use them."""
    if platform.system() != "Linux" or not (_FEATURES.get("amx-bf16") and _FEATURES.get("avx512f")):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


HAS_INTEGERS = _FEATURES.get("avx2", False)
HAS_WIDE_INTEGERS = _FEATURES.get("avx512bw", False)
HAS_TILES = _may_use_tiles()


def _at(builder: Any, address: Any, offset: int | Any, kind: Any) -> Any:
    offset = I64(offset) if isinstance(offset, int) else offset
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _load(builder: Any, address: Any, offset: int | Any, kind: Any, align: int = 4) -> Any:
    value = builder.load(_at(builder, address, offset, kind))
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, offset: int) -> None:
    builder.store(value, _at(builder, address, offset, value.type)).align = 4


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector that has the value in all lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    vector = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(
        vector, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    )


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _add_integer_products(multiply_add: str, lanes: int, num_rows: int) -> Callable[..., Any]:
    def make(typingctx: Any, x: Any, x_stride: Any, w: Any, pairs: Any, out: Any) -> Any:
        """out[r, c] += sum over `pairs` of x[r, 2i] w[i, c, 0] + x[r, 2i + 1] w[i, c, 1].

        x int16 [num_rows, ...], w int16 [pairs, GROUP, 2], out int32 [num_rows, GROUP]. The sums
        stay in vector registers.
        """
        signature = types.void(types.uintp, types.intp, types.uintp, types.intp, types.uintp)
        return signature, generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, w, pairs, out = arguments
        ints, shorts = ir.VectorType(I32, lanes), ir.VectorType(I16, 2 * lanes)
        parts = range(0, GROUP, lanes)
        rows = [builder.mul(x_stride, I64(r)) for r in range(num_rows)]
        places = [(r, first, 4 * (GROUP * r + first)) for r in range(num_rows) for first in parts]
        sums = [cgutils.alloca_once(builder, ints) for _ in places]
        for (_, _, place), total in zip(places, sums, strict=True):
            builder.store(_load(builder, out, place, ints), total)
        with cgutils.for_range(builder, pairs, intp=I64) as loop:
            row_at = builder.add(w, builder.mul(loop.index, I64(4 * GROUP)))
            weights = {
                first: builder.bitcast(_load(builder, row_at, 4 * first, ints), shorts)
                for first in parts
            }
            pair_at = builder.mul(loop.index, I64(4))
            spread = []
            for row in rows:
                pair = _load(builder, x, builder.add(row, pair_at), I32, align=2)
                spread.append(builder.bitcast(_spread(builder, pair, lanes), shorts))
            for (r, first, _), total in zip(places, sums, strict=True):
                product = _call(builder, multiply_add, ints, spread[r], weights[first])
                builder.store(builder.add(builder.load(total), product), total)
        for (_, _, place), total in zip(places, sums, strict=True):
            _store(builder, builder.load(total), out, place)
        return context.get_dummy_value()

    return make


_NARROW, _WIDE = ("llvm.x86.avx2.pmadd.wd", 8, 6), ("llvm.x86.avx512.pmaddw.d.512", 16, 12)
INTEGER_ROWS = (_WIDE if HAS_WIDE_INTEGERS else _NARROW)[2]
"""Rows whose products with a panel are summed together."""
add_narrow_products: Any = intrinsic(_add_integer_products(*_NARROW))
add_wide_products: Any = intrinsic(_add_integer_products(*_WIDE))
add_integer_products: Any = add_wide_products if HAS_WIDE_INTEGERS else add_narrow_products


def _make_configure_tiles(typingctx: Any) -> Any:
    """Give this thread's tiles their shape, until `release_tiles`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        palette, row_bytes = 1, [64, 0]  # little-endian 16-bit numbers
        shape = [palette, *[0] * 15, *row_bytes * 8, *[0] * 16, *[TILE] * 8, *[0] * 8]
        constant = ir.Constant(ir.ArrayType(I8, 64), bytearray(shape))
        place = cgutils.global_constant(builder, "tile_shapes", constant)
        _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), builder.bitcast(place, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), generate


def _make_release_tiles(typingctx: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), generate


def _make_tile_products(
    typingctx: Any, x: Any, x_stride: Any, w: Any, w_stride: Any, tiles: Any, out: Any
) -> Any:
    """out[r, c] = x[r] . w[c], over 32 `tiles` coordinates, of the latents of two panels.

    x bfloat16 [2 TILE, ...]; w the first panel [16 tiles, GROUP, 2], the second `w_stride` bytes
    behind; out float32 [2 TILE, 2 GROUP].
    """
    signature = types.void(*[types.uintp, types.intp] * 2, types.intp, types.uintp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, w, w_stride, tiles, out = arguments
        x_tiles, w_tiles = (I8(4), I8(5)), (I8(6), I8(7))
        sums = [(i, j, I8(2 * i + j)) for i in (0, 1) for j in (0, 1)]
        row = I64(8 * GROUP)

        def address(base: Any, offset: Any) -> Any:
            return builder.inttoptr(builder.add(base, offset), I8.as_pointer())

        def call(name: str, *arguments: Any) -> None:
            _call(builder, f"llvm.x86.{name}", ir.VoidType(), *arguments)

        def out_at(i: int, j: int) -> Any:
            return address(out, I64(8 * GROUP * TILE * i + 4 * GROUP * j))

        for _, _, total in sums:
            call("tilezero", total)
        with cgutils.for_range(builder, tiles, intp=I64) as loop:
            x_at = builder.add(x, builder.mul(loop.index, I64(4 * TILE)))
            w_at = builder.add(w, builder.mul(loop.index, I64(4 * GROUP * TILE)))
            for i, tile in enumerate(x_tiles):
                call(
                    "tileloadd64",
                    tile,
                    address(x_at, builder.mul(x_stride, I64(TILE * i))),
                    x_stride,
                )
            for j, tile in enumerate(w_tiles):
                call(
                    "tileloadd64",
                    tile,
                    address(w_at, builder.mul(w_stride, I64(j))),
                    I64(4 * GROUP),
                )
            for i, j, total in sums:
                call("tdpbf16ps", total, x_tiles[i], w_tiles[j])
        for i, j, total in sums:
            call("tilestored64", total, out_at(i, j), row)
        return context.get_dummy_value()

    return signature, generate


configure_tiles: Any = intrinsic(_make_configure_tiles)
release_tiles: Any = intrinsic(_make_release_tiles)
tile_products: Any = intrinsic(_make_tile_products)


def _score_group(sum_type: Any) -> Callable[..., Any]:
    def make(
        typingctx: Any, sums: Any, gains: Any, offsets: Any, errors: Any, scale: Any, x_error: Any,
        scores: Any,
    ) -> Any:  # fmt: skip
        """scores[c] = sums[c] scale gains[c] + offsets[c]; returns the largest of scores[c] -
        x_error errors[c].

        Of GROUP sums and float32. Written out because compilers do not vectorize a maximum.
        """
        places, numbers = [types.uintp] * 4, [types.float32] * 2
        return types.float32(*places, *numbers, types.uintp), generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, gains, offsets, errors, scale, x_error, scores = arguments
        lanes = 8
        floats = ir.VectorType(FLOAT, lanes)

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        scale, x_error = _spread(builder, scale, lanes), _spread(builder, x_error, lanes)
        bounds = []
        for place in range(0, 4 * GROUP, 4 * lanes):
            total = _load(builder, sums, place, ir.VectorType(sum_type, lanes))
            total = total if sum_type is FLOAT else builder.sitofp(total, floats)
            gain = builder.fmul(scale, _load(builder, gains, place, floats))
            score = builder.fadd(builder.fmul(total, gain), _load(builder, offsets, place, floats))
            _store(builder, score, scores, place)
            error = builder.fmul(x_error, _load(builder, errors, place, floats))
            bounds.append(builder.fsub(score, error))
        best = larger(*bounds)
        for distance in (4, 2, 1):
            order = ir.Constant(
                ir.VectorType(I32, lanes), [(i + distance) % lanes for i in range(lanes)]
            )
            moved = builder.shuffle_vector(best, ir.Constant(floats, ir.Undefined), order)
            best = larger(best, moved)
        return builder.extract_element(best, I32(0))

    return make


score_integer_group: Any = intrinsic(_score_group(I32))
score_float_group: Any = intrinsic(_score_group(FLOAT))


def _make_fetch(typingctx: Any, address: Any) -> Any:
    """Ask for the line of memory at an address, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], I8.as_pointer())
        to_read, keep, data = I32(0), I32(3), I32(1)
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, to_read, keep, data)
        return context.get_dummy_value()

    return types.void(types.uintp), generate


fetch: Any = intrinsic(_make_fetch)
