"""Dot products of rounded rows, with vector and tile instructions that LLVM does not generate.

Written as LLVM IR, which numba inlines into the kernels that call them. All take addresses and
strides in bytes. `HAS_TILES`, `HAS_INTEGERS` and `HAS_WIDE_INTEGERS` say which of them this
processor supports; compiling another one fails. Called by `search` and `candidates`.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

GROUP = 16
"""Latents of one panel, whose rows hold two 16-bit coordinates of each latent side by side."""
TILE = 16
"""Rows of a tile, and pairs of coordinates in each."""

_FEATURES: dict[str, bool] = dict(llvm.get_host_cpu_features())
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
I8, I16, I32, I64, FLOAT = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType()


def _may_use_tiles() -> bool:
    """Whether the processor has bfloat16 tiles (Intel AMX) and Linux permits their use.

    Linux requires each process to request permission for the tile registers, which this does.
    """
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


def _broadcast(builder: Any, value: Any, lanes: int) -> Any:
    """A vector with the value in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    vector = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(
        vector, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    )


def _instruction(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a numba intrinsic of a function that emits IR: `emit(builder, *values)`."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def typed(typingctx: Any, *_: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                returned = emit(builder, *values)
                return context.get_dummy_value() if returned is None else returned

            return result(*arguments), generate

        return intrinsic(functools.update_wrapper(typed, emit, updated=()))

    return decorate


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _add_integer_products(multiply_add: str, lanes: int, num_rows: int) -> Any:
    @_instruction(types.void, types.uintp, types.intp, types.uintp, types.intp, types.uintp)
    def add_products(builder: Any, x: Any, x_stride: Any, w: Any, pairs: Any, out: Any) -> None:
        """out[r, c] += sum over `pairs` of x[r, 2i] w[i, c, 0] + x[r, 2i + 1] w[i, c, 1].

        x int16 [num_rows, ...], w int16 [pairs, GROUP, 2], out int32 [num_rows, GROUP]. The sums
        are kept in vector registers.
        """
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
            inputs = []
            for row in rows:
                pair = _load(builder, x, builder.add(row, pair_at), I32, align=2)
                inputs.append(builder.bitcast(_broadcast(builder, pair, lanes), shorts))
            for (r, first, _), total in zip(places, sums, strict=True):
                product = _call(builder, multiply_add, ints, inputs[r], weights[first])
                builder.store(builder.add(builder.load(total), product), total)
        for (_, _, place), total in zip(places, sums, strict=True):
            _store(builder, builder.load(total), out, place)

    return add_products


_NARROW, _WIDE = ("llvm.x86.avx2.pmadd.wd", 8, 6), ("llvm.x86.avx512.pmaddw.d.512", 16, 12)
INTEGER_ROWS = (_WIDE if HAS_WIDE_INTEGERS else _NARROW)[2]
"""Rows of x that `add_integer_products` takes: as many as fit into the vector registers."""
add_narrow_products: Any = _add_integer_products(*_NARROW)
add_wide_products: Any = _add_integer_products(*_WIDE)
add_integer_products: Any = add_wide_products if HAS_WIDE_INTEGERS else add_narrow_products


@_instruction(types.void)
def configure_tiles(builder: Any) -> None:
    """Set the shape of this thread's tile registers, until `release_tiles`."""
    palette, row_bytes = 1, [64, 0]  # 64 as a little-endian 16-bit number
    shape = [palette, *[0] * 15, *row_bytes * 8, *[0] * 16, *[TILE] * 8, *[0] * 8]
    constant = ir.Constant(ir.ArrayType(I8, 64), bytearray(shape))
    place = cgutils.global_constant(builder, "tile_shapes", constant)
    _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), builder.bitcast(place, I8.as_pointer()))


@_instruction(types.void)
def release_tiles(builder: Any) -> None:
    _call(builder, "llvm.x86.tilerelease", ir.VoidType())


@_instruction(types.void, *[types.uintp, types.intp] * 2, types.intp, types.uintp)
def tile_products(
    builder: Any, x: Any, x_stride: Any, w: Any, w_stride: Any, tiles: Any, out: Any
) -> None:
    """out[r, c] = x[r] . w[c] over 32 * tiles coordinates, for the latents c of two panels.

    x bfloat16 [2 TILE, ...]; w the first panel, bfloat16 [16 * tiles, GROUP, 2], and the second one
    `w_stride` bytes after it; out float32 [2 TILE, 2 GROUP].
    """
    x_tiles, w_tiles = (I8(4), I8(5)), (I8(6), I8(7))
    sums = [(i, j, I8(2 * i + j)) for i in (0, 1) for j in (0, 1)]

    def call(name: str, *arguments: Any) -> None:
        _call(builder, f"llvm.x86.{name}", ir.VoidType(), *arguments)

    for _, _, total in sums:
        call("tilezero", total)
    with cgutils.for_range(builder, tiles, intp=I64) as loop:
        x_at = builder.add(x, builder.mul(loop.index, I64(4 * TILE)))
        w_at = builder.add(w, builder.mul(loop.index, I64(4 * GROUP * TILE)))
        for i, tile in enumerate(x_tiles):
            place = _at(builder, x_at, builder.mul(x_stride, I64(TILE * i)), I8)
            call("tileloadd64", tile, place, x_stride)
        for j, tile in enumerate(w_tiles):
            place = _at(builder, w_at, builder.mul(w_stride, I64(j)), I8)
            call("tileloadd64", tile, place, I64(4 * GROUP))
        for i, j, total in sums:
            call("tdpbf16ps", total, x_tiles[i], w_tiles[j])
    for i, j, total in sums:
        place = _at(builder, out, 8 * GROUP * TILE * i + 4 * GROUP * j, I8)
        call("tilestored64", total, place, I64(8 * GROUP))


def _score_group(sum_type: Any) -> Any:
    places, numbers = [types.uintp] * 4, [types.float32] * 2

    @_instruction(types.float32, *places, *numbers, types.uintp)
    def score_group(
        builder: Any, sums: Any, gains: Any, offsets: Any, errors: Any, scale: Any, x_error: Any,
        scores: Any,
    ) -> Any:  # fmt: skip
        """scores[c] = sums[c] scale gains[c] + offsets[c]; returns max(scores[c] - x_error
        errors[c]), over the GROUP latents c of a group.

        In IR, because LLVM does not vectorize the maximum by itself.
        """
        lanes = 8
        floats = ir.VectorType(FLOAT, lanes)

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        scale, x_error = (_broadcast(builder, value, lanes) for value in (scale, x_error))
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

    return score_group


score_integer_group: Any = _score_group(I32)
score_float_group: Any = _score_group(FLOAT)


@_instruction(types.void, types.uintp)
def prefetch(builder: Any, address: Any) -> None:
    """Prefetch the cache line at an address."""
    read, all_levels, data = I32(0), I32(3), I32(1)
    place = _at(builder, address, 0, I8)
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, read, all_levels, data)
