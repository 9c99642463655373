"""The dot products of int8 columns with activations, in the form the processor does best.

AVX-512 VNNI multiplies unsigned by signed bytes, four at a time, and adds them up in int32.  So an
activation is laid out plus 128, and 128 times the column's sum is taken off again: modulo 2^32,
and exact, because the result itself fits.  Of many activations it is the columns that get the 128:
16 of them are turned over, so that a vector has four bytes of each, and then serve all.  Processors
without it multiply int16.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from chip.jit import (
    Deferred,
    intrinsic_of,
    jit_inline,
    jit_uncounted,
    prefetch_row,
    processor_has,
    row_of,
)

Array = NDArray[Any]

_VECTORS = 5  # of 64 bytes each: 320 lanes
#: 16 columns turned over.
TILE_BYTES = 16 * 320
#: Activations that one pass over a tile multiplies.
_TOGETHER = 8
_LAID_BYTES = 640  # of an activation's row


def has_vnni() -> bool:
    """True where compiled code may use AVX-512 VNNI."""
    return processor_has("avx512vnni")


@jit_inline
def lay_wide(row: Array, out: Array) -> None:
    """int16 [320] of int8 [320], for ``dot_wide``."""
    for i in range(320):
        out[i] = np.int16(row[i])


@jit_inline
def dot_wide(w: Array, a: Array, b: Array) -> Any:
    """w . a and w . b; w int8 [320], a and b int16 [320] as ``lay_wide`` left them."""
    s = np.int32(0)  # two loops of one sum each become vector loops, one of two does not
    for i in range(320):
        s = np.int32(s + np.int32(np.int16(w[i])) * np.int32(a[i]))
    t = np.int32(0)
    for i in range(320):
        t = np.int32(t + np.int32(np.int16(w[i])) * np.int32(b[i]))
    return s, t


_BYTES = ir.VectorType(ir.IntType(8), 64)
_WORDS = ir.VectorType(ir.IntType(32), 16)


def _vectors(context: Any, builder: Any, array_type: Any, value: Any, kind: Any) -> Any:
    """Pointer to the bytes of an array as vectors of ``kind``."""
    view = context.make_array(array_type)(context, builder, value)
    return builder.bitcast(view.data, kind.as_pointer())


def _at(builder: Any, vectors: Any, k: int) -> Any:
    return builder.gep(vectors, [ir.Constant(ir.IntType(64), k)])


def _lay_unsigned(typing_context: Any, row: Any, out: Any) -> Any:
    """The first 320 bytes of ``out`` become those of ``row`` (int8 [320]) plus 128."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (
            _vectors(context, builder, kind, value, _BYTES)
            for kind, value in zip(signature.args, args, strict=True)
        )
        high = ir.Constant(_BYTES, [-128] * 64)
        for k in range(_VECTORS):
            bits = builder.load(_at(builder, source, k), align=1)
            builder.store(builder.xor(bits, high), _at(builder, target, k), align=1)
        return context.get_dummy_value()

    return import_module("numba.core.types").void(row, out), generate


def _dot_unsigned(typing_context: Any, w: Any, a: Any, b: Any) -> Any:
    """As ``dot_wide``, of activations as ``_lay_unsigned`` left them."""
    types = import_module("numba.core.types")
    pair = types.UniTuple(types.int32, 2)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns, first, second = (
            _vectors(context, builder, kind, value, _WORDS)
            for kind, value in zip(signature.args, args, strict=True)
        )
        multiply = builder.module.declare_intrinsic(
            "llvm.x86.avx512.vpdpbusd.512", fnty=ir.FunctionType(_WORDS, [_WORDS] * 3)
        )
        add_up = builder.module.declare_intrinsic(
            "llvm.vector.reduce.add.v16i32", fnty=ir.FunctionType(ir.IntType(32), [_WORDS])
        )
        ones = ir.Constant(_WORDS, [0x01010101] * 16)
        sums = [ir.Constant(_WORDS, [0] * 16)] * 3
        for k in range(_VECTORS):
            column = builder.load(_at(builder, columns, k), align=1)
            activations = [builder.load(_at(builder, x, k), align=1) for x in (first, second)]
            sums = [
                builder.call(multiply, [total, x, column])
                for total, x in zip(sums, [*activations, ones], strict=True)
            ]
        excess = builder.shl(sums[2], ir.Constant(_WORDS, [7] * 16))
        results = [builder.call(add_up, [builder.sub(total, excess)]) for total in sums[:2]]
        return context.make_tuple(builder, signature.return_type, results)

    return pair(w, a, b), generate


def _turn(typing_context: Any, signed: Any, rows: Any, at: Any, tile: Any) -> Any:
    """Columns ``at`` .. ``at`` + 15 plus 128 into ``tile`` uint8 [5120].

    rows int32: of each column in signed int8 [n, 320].  Four bytes of each of the 16 columns, then
    the next four of each.
    """
    types = import_module("numba.core.types")
    cgutils: Any = import_module("numba.core.cgutils")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(64)
        source, columns, target = (
            builder.bitcast(
                context.make_array(signature.args[i])(context, builder, args[i]).data,
                kind.as_pointer(),
            )
            for i, kind in ((0, ir.IntType(8)), (1, ir.IntType(32)), (3, _WORDS))
        )
        starts = []
        for j in range(16):
            place = builder.gep(columns, [builder.add(args[2], number(j))])
            row = builder.sext(builder.load(place), number)
            starts.append(builder.gep(source, [builder.mul(row, number(320))]))
        high = ir.Constant(_WORDS, [0x80808080 - (1 << 32)] * 16)
        # the first halves of two vectors, element by element in turn, and the second ones: after
        # four rounds of it row and column have changed places
        orders = [ir.Constant(_WORDS, [h + j // 2 + j % 2 * 16 for j in range(16)]) for h in (0, 8)]
        with cgutils.for_range(builder, number(_VECTORS)) as loop:
            vectors = []
            for start in starts:
                place = builder.gep(start, [builder.mul(loop.index, number(64))])
                value = builder.load(builder.bitcast(place, _WORDS.as_pointer()), align=1)
                vectors.append(builder.xor(value, high))
            for _ in range(4):
                vectors = [
                    builder.shuffle_vector(vectors[j], vectors[j + 8], order)
                    for j in range(8)
                    for order in orders
                ]
            first = builder.mul(loop.index, number(16))
            for j, value in enumerate(vectors):
                place = builder.gep(target, [builder.add(first, number(j))])
                builder.store(value, place, align=1)
        return context.get_dummy_value()

    return types.void(signed, rows, types.int64, tile), generate


def _multiply_tile(
    typing_context: Any, tile: Any, laid: Any, first: Any, excess: Any, p: Any, c: Any
) -> Any:
    """p[k, c .. c + 15] = excess[k] + the tile's columns . activation k, eight from ``first`` on.

    laid int16 [n, 320]: of each activation 320 bytes as they are; p int32 [n, 320].
    """
    types = import_module("numba.core.types")
    cgutils: Any = import_module("numba.core.cgutils")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, word = ir.IntType(64), ir.IntType(32)
        columns, own, begin, out = (
            builder.bitcast(
                context.make_array(signature.args[i])(context, builder, args[i]).data,
                kind.as_pointer(),
            )
            for i, kind in ((0, _WORDS), (1, ir.IntType(8)), (3, word), (4, word))
        )
        own = builder.gep(own, [builder.mul(args[2], number(_LAID_BYTES))])
        begin = builder.gep(begin, [args[2]])
        out = builder.gep(out, [builder.add(builder.mul(args[2], number(320)), args[5])])
        multiply = builder.module.declare_intrinsic(
            "llvm.x86.avx512.vpdpbusd.512", fnty=ir.FunctionType(_WORDS, [_WORDS] * 3)
        )
        everywhere = ir.Constant(_WORDS, [0] * 16)

        def spread(place: Any) -> Any:
            one = builder.insert_element(
                ir.Constant(_WORDS, ir.Undefined), builder.load(place, align=1), word(0)
            )
            return builder.shuffle_vector(one, one, everywhere)

        totals = []
        for k in range(_TOGETHER):
            totals.append(cgutils.alloca_once(builder, _WORDS))
            builder.store(spread(builder.gep(begin, [number(k)])), totals[-1])
        with cgutils.for_range(builder, number(20)) as loop:
            for j in range(4):
                t = builder.add(builder.mul(loop.index, number(4)), number(j))
                column = builder.load(builder.gep(columns, [t]), align=1)
                for k, total in enumerate(totals):
                    place = builder.add(builder.mul(t, number(4)), number(k * _LAID_BYTES))
                    place = builder.bitcast(builder.gep(own, [place]), word.as_pointer())
                    sums = builder.call(multiply, [builder.load(total), column, spread(place)])
                    builder.store(sums, total)
        for k, total in enumerate(totals):
            place = builder.gep(out, [number(320 * k)])
            builder.store(builder.load(total), builder.bitcast(place, _WORDS.as_pointer()), align=1)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(tile, laid, whole, excess, p, whole), generate


lay_unsigned = intrinsic_of(_lay_unsigned)
dot_unsigned = intrinsic_of(_dot_unsigned)


def _lay_signed(typing_context: Any, row: Any, out: Any) -> Any:
    """The bytes of int8 [320] into the first half of int16 [320]; what its products begin with."""
    types = import_module("numba.core.types")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (
            _vectors(context, builder, kind, value, _WORDS)
            for kind, value in zip(signature.args, args, strict=True)
        )
        multiply = builder.module.declare_intrinsic(
            "llvm.x86.avx512.vpdpbusd.512", fnty=ir.FunctionType(_WORDS, [_WORDS] * 3)
        )
        add_up = builder.module.declare_intrinsic(
            "llvm.vector.reduce.add.v16i32", fnty=ir.FunctionType(ir.IntType(32), [_WORDS])
        )
        ones = ir.Constant(_WORDS, [0x01010101] * 16)
        total = ir.Constant(_WORDS, [0] * 16)
        for k in range(_VECTORS):
            bits = builder.load(_at(builder, source, k), align=1)
            total = builder.call(multiply, [total, ones, bits])
            builder.store(bits, _at(builder, target, k), align=1)
        return builder.mul(builder.call(add_up, [total]), ir.Constant(ir.IntType(32), -128))

    return types.int32(row, out), generate


lay_signed = intrinsic_of(_lay_signed)
turn = intrinsic_of(_turn)
multiply_tile = intrinsic_of(_multiply_tile)

#: What the processor does best, which numba's settings have a say in.
lay: Any = Deferred(lambda: (lay_unsigned if has_vnni() else cast(Any, lay_wide)).made)
dot: Any = Deferred(lambda: (dot_unsigned if has_vnni() else cast(Any, dot_wide)).made)


@jit_inline
def _repeats_group(rows: Array, at: int) -> bool:
    """The 16 columns from ``at`` on have the same rows as the 16 before."""
    same = True
    for c in range(at, at + 16):
        same = same and rows[c] == rows[c - 16]
    return same


@jit_uncounted
def products_in_tiles(
    signed: Array,
    rows: Array,
    at: int,
    groups: int,
    count: int,
    laid: Array,
    tile: Array,
    excess: Array,
    p: Array,
) -> None:
    """As ``products_in_pairs``, of activations as ``lay_signed`` left them; with AVX-512 VNNI."""
    last = rows.shape[0] - 1
    for g in range(groups):
        first = at + 16 * g
        if g > 0 and _repeats_group(rows, first):
            for k in range(count):
                for c in range(16 * g, 16 * g + 16):
                    p[k, c] = p[k, c - 16]
            continue
        for c in range(first + 16, first + 32):  # the next group, or install
            prefetch_row(signed, np.int64(rows[min(c, last)]))
        turn(signed, rows, first, tile)
        for k in range(0, count, _TOGETHER):
            multiply_tile(tile, laid, k, excess, p, 16 * g)
    for k in range(count):
        for c in range(16 * groups, 320):
            p[k, c] = 0


@jit_uncounted
def products_in_pairs(
    signed: Array,
    rows: Array,
    at: int,
    groups: int,
    count: int,
    laid: Array,
    tile: Array,
    excess: Array,
    p: Array,
) -> None:
    """p[k, c] = weights of column c . activation k < ``count``, in one pass over the weights.

    signed int8 [rows, 320]; laid int16 [count, 320] as ``lay_wide`` left them; p int32 [n, 320],
    zero beyond 16 * groups columns, n a multiple of eight that is at least ``count``.  Columns are
    taken slice by slice, as of ``chip.engine.mxm.dot_int8``.
    """
    last = rows.shape[0] - 1
    for j in range(16):
        for g in range(groups):
            c = 16 * g + j
            r = rows[at + c]
            if g > 0 and r == rows[at + c - 16]:
                for k in range(count):
                    p[k, c] = p[k, c - 16]
                continue
            prefetch_row(signed, np.int64(rows[min(at + c + 16, last)]))
            w = row_of(signed, r)
            for k in range(0, count - 1, 2):
                s, t = dot_wide(w, row_of(laid, k), row_of(laid, k + 1))
                p[k, c] = s
                p[k + 1, c] = t
            if count % 2 == 1:
                s, t = dot_wide(w, row_of(laid, count - 1), row_of(laid, count - 1))
                p[count - 1, c] = s
    for k in range(count):
        for c in range(16 * groups, 320):
            p[k, c] = 0


@jit_inline
def lay_wide_too(row: Array, out: Array) -> Any:
    """As ``lay_wide``; the products begin with nothing."""
    lay_wide(row, out)
    return np.int32(0)


#: Of many activations.
lay_many: Any = Deferred(lambda: cast(Any, lay_signed if has_vnni() else lay_wide_too).made)
products_of_many: Any = Deferred(
    lambda: cast(Any, products_in_tiles if has_vnni() else products_in_pairs).made
)
