"""Compiled products of fp16 columns with activations: exact, and rounded once to fp32.

Products of fp16 numbers are exact in float64, so the sum of 320 of them is off by little: nearly
always both ends of what it can be round to the same fp32 number.  Where they do not, exact sums of
the products' high and low parts decide.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from chip.engine.machine import Halves
from chip.isa import LANES
from chip.jit import intrinsic_of, jit_any_order, jit_uncounted, processor_has, row_of

Array = NDArray[Any]
_NAN = np.uint32(0x7FC00000).view(np.float32)
_SCALE = np.float32(2.0**112)
#: fp16 activations multiplied in one pass over the weights.
ACTIVATIONS = 16
#: Lanes that are left out together where all activations of a pass are zero.
BLOCK = 8
#: Of float64 sums of 320 terms in any order, the error over the sum of the terms' magnitudes.
_ERROR = 512.0 * 2.0**-53
#: Added and taken off again, it rounds a float64 of at most 2^32 to a multiple of 2^-12.
_ROUNDS = 1.5 * 2.0**40


_BYTES = ir.VectorType(ir.IntType(8), BLOCK)
_FLOATS = ir.VectorType(ir.FloatType(), BLOCK)
_DOUBLES = ir.VectorType(ir.DoubleType(), BLOCK)
_WORDS = ir.VectorType(ir.IntType(32), BLOCK)


def _data_of(context: Any, builder: Any, array_type: Any, value: Any) -> Any:
    """Pointer to an array's first byte."""
    view = context.make_array(array_type)(context, builder, value)
    return builder.bitcast(view.data, ir.IntType(8).as_pointer())


def _load_at(builder: Any, data: Any, offset: Any, kind: Any) -> Any:
    """The value of type ``kind`` that begins ``offset`` bytes behind ``data``."""
    place = builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())
    return builder.load(place, align=1)


def _store_at(builder: Any, data: Any, offset: Any, value: Any) -> None:
    """Store ``value`` from ``offset`` bytes behind ``data`` on."""
    place = builder.bitcast(builder.gep(data, [offset]), value.type.as_pointer())
    builder.store(value, place, align=1)


def _doubles_of(builder: Any, low: Any, high: Any, *, converts: bool) -> Any:
    """float64 of eight fp16 numbers in two bytes each; wrong of an infinite one or NaN."""
    if converts:
        order = ir.Constant(
            ir.VectorType(ir.IntType(32), 16), [j // 2 + j % 2 * 8 for j in range(16)]
        )
        halves = builder.bitcast(
            builder.shuffle_vector(low, high, order), ir.VectorType(ir.HalfType(), BLOCK)
        )
        return builder.fpext(builder.fpext(halves, _FLOATS), _DOUBLES)

    def of(value: int) -> Any:
        return ir.Constant(_WORDS, [value] * BLOCK)

    top = builder.shl(builder.zext(high, _WORDS), of(8))
    bits = builder.or_(builder.zext(low, _WORDS), top)
    sign = builder.shl(builder.and_(bits, of(0x8000)), of(16))
    magnitude = builder.shl(builder.and_(bits, of(0x7FFF)), of(13))
    small = builder.bitcast(builder.or_(sign, magnitude), _FLOATS)
    scale = ir.Constant(_FLOATS, [float(_SCALE)] * BLOCK)
    return builder.fpext(builder.fmul(small, scale), _DOUBLES)


def _sums_of(builder: Any, parts: list[Any]) -> Any:
    """One vector with the sum of each of eight."""
    even = ir.Constant(_WORDS, list(range(0, 2 * BLOCK, 2)))
    odd = ir.Constant(_WORDS, list(range(1, 2 * BLOCK, 2)))
    while len(parts) > 1:
        parts = [
            builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _dots(activations: int, apart: int) -> Any:
    """sums[first + k] = column . activation first + k, for ``activations`` in a row, in float64.

    low, high: byte rows of the column; wide float64 [n, 320]; live int64: the first ``blocks``
    entries are the lanes at which blocks begin that are not zero in all; sums float64 [n].
    apart: blocks summed apart, so that one sum need not wait for the last.
    """

    def implementation(
        typing_context: Any,
        low: Any,
        high: Any,
        wide: Any,
        live: Any,
        blocks: Any,
        first: Any,
        sums: Any,
    ) -> Any:
        types = import_module("numba.core.types")
        cgutils: Any = import_module("numba.core.cgutils")
        converts = processor_has("f16c")

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            number = ir.IntType(64)
            data = [_data_of(context, builder, signature.args[i], args[i]) for i in (0, 1, 2, 3, 6)]
            zero = ir.Constant(_DOUBLES, [0.0] * BLOCK)
            totals = []
            for _ in range(activations * apart):
                totals.append(cgutils.alloca_once(builder, _DOUBLES))
                builder.store(zero, totals[-1])
            own = builder.gep(data[2], [builder.mul(args[5], number(8 * LANES))])

            def add(block: Any, into: list[Any]) -> None:
                at = _load_at(builder, data[3], builder.mul(block, number(8)), number)
                weights = _doubles_of(
                    builder,
                    _load_at(builder, data[0], at, _BYTES),
                    _load_at(builder, data[1], at, _BYTES),
                    converts=converts,
                )
                begin = builder.mul(at, number(8))
                for k, total in enumerate(into):
                    place = builder.add(begin, number(8 * LANES * k))
                    product = builder.fmul(
                        weights, _load_at(builder, own, place, _DOUBLES), flags=("contract",)
                    )
                    summed = builder.fadd(builder.load(total), product, flags=("contract",))
                    builder.store(summed, total)

            rounds = builder.udiv(args[4], number(apart))
            with cgutils.for_range(builder, rounds) as loop:
                begin = builder.mul(loop.index, number(apart))
                for j in range(apart):
                    into = totals[j * activations : (j + 1) * activations]
                    add(builder.add(begin, number(j)), into)
            if apart > 1:
                begin = builder.mul(rounds, number(apart))
                with cgutils.for_range(builder, builder.sub(args[4], begin)) as loop:
                    add(builder.add(begin, loop.index), totals[:activations])
            parts = [builder.load(total) for total in totals]
            for j in range(1, apart):
                for k in range(activations):
                    parts[k] = builder.fadd(parts[k], parts[j * activations + k])
            parts = parts[:activations] + [zero] * (BLOCK - activations)
            found = _sums_of(builder, parts)
            place = builder.gep(data[4], [builder.mul(args[5], number(8))])
            for k in range(activations):
                one = builder.extract_element(found, ir.IntType(32)(k))
                _store_at(builder, place, number(8 * k), one)
            return context.get_dummy_value()

        whole = types.int64
        return types.void(low, high, wide, live, whole, whole, sums), generate

    return intrinsic_of(implementation)


dots_of_eight = _dots(8, 1)
dots_of_four = _dots(4, 1)
dots_of_one = _dots(1, 4)


def _magnitudes(typing_context: Any, low: Any, high: Any) -> Any:
    """Of 320 fp16 numbers the greatest high byte without its sign, and whether any is not 0."""
    types = import_module("numba.core.types")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, byte = ir.IntType(64), ir.IntType(8)
        line = ir.VectorType(byte, 64)
        data = [_data_of(context, builder, signature.args[i], args[i]) for i in (0, 1)]
        unsigned = ir.Constant(line, [0x7F] * 64)
        top = some = ir.Constant(line, [0] * 64)
        for offset in range(0, LANES, 64):
            first, second = (_load_at(builder, d, number(offset), line) for d in data)
            second = builder.and_(second, unsigned)
            top = builder.select(builder.icmp_unsigned(">", second, top), second, top)
            some = builder.or_(some, builder.or_(first, second))
        found = []
        for kind, value in (("umax", top), ("or", some)):
            reduce = builder.module.declare_intrinsic(
                f"llvm.vector.reduce.{kind}.v64i8", fnty=ir.FunctionType(byte, [line])
            )
            found.append(builder.zext(builder.call(reduce, [value]), number))
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.int64, 2)(low, high), generate


magnitudes = intrinsic_of(_magnitudes)


@jit_uncounted
def _decode(low: Array, high: Array, out: Array) -> None:
    """float64 of 320 finite fp16 numbers."""
    for i in range(320):
        h = np.uint32(low[i]) | (np.uint32(high[i]) << np.uint32(8))
        sign = np.uint32(h & np.uint32(0x8000)) << np.uint32(16)
        u = np.uint32(sign | (np.uint32(h & np.uint32(0x7FFF)) << np.uint32(13)))
        out[i] = np.float64(u.view(np.float32) * _SCALE)


@jit_uncounted
def _bound(top: int) -> Any:
    """No finite fp16 number of high byte ``top`` is greater; NaN and infinite ones: -1.0."""
    if top >= 0x7C:
        return -1.0
    bits = np.uint32((top << 8 | 255) << 13)
    return np.float64(bits.view(np.float32) * _SCALE)


@jit_uncounted
def _split(w: Array, a: Array, high: Array, low: Array) -> None:
    """high[i] + low[i] = w[i] * a[i], multiples of 2^-12 and what is less: sums of 320 are exact.

    The products are at most 2^32, and multiples of 2^-48.
    """
    for i in range(320):
        product = w[i] * a[i]
        high[i] = (product + _ROUNDS) - _ROUNDS
        low[i] = product - high[i]


@jit_any_order
def _total(values: Array) -> Any:
    total = 0.0
    for i in range(320):
        total += values[i]
    return total


@jit_any_order
def _total_magnitude(values: Array) -> Any:
    total = 0.0
    for i in range(320):
        total += abs(values[i])
    return total


@jit_uncounted
def exact_dot(w: Array, a: Array, high: Array, low: Array) -> Any:
    """The dot product of fp16 numbers, float64 [320], rounded once to fp32; high, low: scratch."""
    _split(w, a, high, low)
    x = _total(high)
    y = _total(low)
    s = x + y
    if s == 0.0:
        return np.float32(0.0)
    part = s - x
    lost = (x - (s - part)) + (y - part)
    if lost != 0.0:  # an odd last bit keeps the sum off the middle of two fp32 numbers
        bits = np.float64(s).view(np.int64)
        if bits & 1 == 0:
            bits += 1 if (lost > 0.0) == (s > 0.0) else -1
        s = np.int64(bits).view(np.float64)
    return np.float32(s)


@jit_uncounted
def _same_word(quads: Array, first: int, second: int) -> bool:
    """Two rows hold the same 320 bytes."""
    a = row_of(quads, first)
    b = row_of(quads, second)
    if a[0] != b[0] or a[40] != b[40]:  # most that differ do there
        return False
    difference = np.uint32(0)
    for i in range(80):
        difference |= a[i] ^ b[i]
    return bool(difference == 0)


@jit_uncounted
def find_repeats(
    quads: Array, weights: Array, at_low: int, at_high: int, columns: int, repeats: Array
) -> None:
    """repeats[c]: how far before column c one lies with the same 320 fp16 numbers, uint8 [320].

    0: nowhere that was looked at, which is one column before and, for whole groups of 16 columns
    with the same rows, 16 before.  quads: the rows as uint32 [rows, 80].  Queries and ones fill
    many columns with one word.
    """
    for first in range(0, columns, 16):
        end = min(first + 16, columns)
        other = 0
        if first > 0:
            for c in range(first, end):
                other |= weights[at_low + c] ^ weights[at_low + c - 16]
                other |= weights[at_high + c] ^ weights[at_high + c - 16]
            if other == 0:
                repeats[first:end] = 16
                continue
        for c in range(first, end):
            repeats[c] = 0
            if c > 0:
                low = weights[at_low + c]
                high = weights[at_high + c]
                low_before = weights[at_low + c - 1]
                high_before = weights[at_high + c - 1]
                if (low == low_before or _same_word(quads, low, low_before)) and (
                    high == high_before or _same_word(quads, high, high_before)
                ):
                    repeats[c] = 1


@jit_uncounted
def _find_live(h: Halves, count: int) -> int:
    """Where the blocks begin that are not zero in all of ``count`` activations, into ``h.live``."""
    blocks = 0
    for at in range(0, 320, BLOCK):
        some = False
        for k in range(count):
            for i in range(BLOCK):
                some |= h.wide[k, at + i] != 0.0
        if some:
            h.live[blocks] = at
            blocks += 1
    return blocks


@jit_uncounted
def lay_fp16(rows: Array, low: int, high: int, h: Halves, k: int) -> None:
    """Decode activation ``k`` from the byte rows ``low`` and ``high``."""
    top, _ = magnitudes(row_of(rows, low), row_of(rows, high))
    h.finite[k] = top < 0x7C
    _decode(row_of(rows, low), row_of(rows, high), row_of(h.wide, k))
    h.totals[k] = _total_magnitude(row_of(h.wide, k))


@jit_uncounted
def _decide(low: Array, high: Array, h: Halves, k: int) -> Any:
    """A finite column . activation ``k``, whatever the sum is."""
    w = row_of(h.wide, ACTIVATIONS)
    _decode(low, high, w)
    scratch = ACTIVATIONS + 1
    return exact_dot(w, row_of(h.wide, k), row_of(h.wide, scratch), row_of(h.wide, scratch + 1))


@jit_uncounted
def dot_fp16(
    rows8: Array,
    weights: Array,
    at_low: int,
    at_high: int,
    columns: int,
    count: int,
    h: Halves,
    p: Array,
    repeats: Array,
) -> None:
    """p[k, c] = fp16 column c (low and high byte rows) . activation k < count, fp32.

    h: the activations as ``lay_fp16`` left them.  p float32 [ACTIVATIONS, 320], zero beyond
    ``columns``; repeats as of ``find_repeats``.
    """
    blocks = _find_live(h, count)
    for c in range(columns):
        if repeats[c] == 16:
            if c % 16 == 0:
                for k in range(count):
                    for i in range(c, min(c + 16, columns)):
                        p[k, i] = p[k, i - 16]
            continue
        if repeats[c] == 1:
            for k in range(count):
                p[k, c] = p[k, c - 1]
            continue
        low = row_of(rows8, weights[at_low + c])
        high = row_of(rows8, weights[at_high + c])
        top, some = magnitudes(low, high)
        greatest = _bound(top)
        if some == 0 or greatest < 0.0:
            for k in range(count):
                p[k, c] = np.float32(0.0) if some == 0 and h.finite[k] else _NAN
            continue
        k = 0
        while k < count:
            if count - k > 4:
                dots_of_eight(low, high, h.wide, h.live, blocks, k, h.sums)
                k += 8
            elif count - k > 1:
                dots_of_four(low, high, h.wide, h.live, blocks, k, h.sums)
                k += 4
            else:
                dots_of_one(low, high, h.wide, h.live, blocks, k, h.sums)
                k += 1
        for k in range(count):
            s = h.sums[k]
            error = greatest * h.totals[k] * _ERROR
            first = np.float32(s - error)
            if not h.finite[k]:
                p[k, c] = _NAN
            elif h.totals[k] == 0.0:
                p[k, c] = np.float32(0.0)
            elif first == np.float32(s + error) and first != np.float32(0.0):
                p[k, c] = first
            else:
                p[k, c] = _decide(low, high, h, k)
    for k in range(count):
        for c in range(columns, 320):
            p[k, c] = np.float32(0.0) if h.finite[k] else _NAN
