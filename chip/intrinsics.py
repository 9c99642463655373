"""What compiled code can do beyond Python: views by address, prefetches, atomic counters.

Functions of typing and code generation, for ``chip.jit`` to make intrinsics of; this module imports
numba.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils as _cgutils
from numba.core import types
from numba.extending import intrinsic
from numba.np import arrayobj as _arrayobj

cgutils: Any = _cgutils
arrayobj: Any = _arrayobj
_LANES, _OF_SUPERLANE = 320, 16
_LINE = 64  # bytes of four superlanes
_WIDE = ir.VectorType(ir.IntType(8), _LINE)
_PART = ir.VectorType(ir.IntType(8), _OF_SUPERLANE)


def _prefetch_row(typing_context: Any, rows: Any, row: Any) -> Any:
    """Ask for the 320 bytes of rows[row] (2-D, byte elements) to be brought into the cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        zero = context.get_constant(numba.intp, 0)
        start = cgutils.get_item_pointer(context, builder, signature.args[0], view, [args[1], zero])
        byte_pointer = ir.IntType(8).as_pointer()
        start = builder.bitcast(start, byte_pointer)
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for offset in range(0, 320, 64):
            line = builder.gep(start, [ir.Constant(ir.IntType(64), offset)])
            builder.call(function, [line, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return numba.void(rows, numba.intp), generate


def _stream_row(typing_context: Any, source: Any, target: Any) -> Any:
    """target[:] = source, vectors of 320 bytes, past the caches: for data read much later.

    The target is aligned to 64 bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), 16)
        ends = []
        for array_type, value in zip(signature.args, args, strict=True):
            view = context.make_array(array_type)(context, builder, value)
            ends.append(builder.bitcast(view.data, line.as_pointer()))
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        for k in range(5):
            at = [ir.Constant(ir.IntType(64), k)]
            value = builder.load(builder.gep(ends[0], at), align=4)
            store = builder.store(value, builder.gep(ends[1], at), align=64)
            store.set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return numba.void(source, target), generate


def _row_of(typing_context: Any, rows: Any, row: Any) -> Any:
    """rows[row] of a C-contiguous 2-D array as a view without reference counting.

    An ordinary view costs two atomic operations, more than a vector operation on its lanes; the
    caller keeps the array alive.
    """
    view_type = types.Array(rows.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        zero = context.get_constant(numba.intp, 0)
        start = cgutils.get_item_pointer(
            context, builder, signature.args[0], array, [args[1], zero]
        )
        view = context.make_array(view_type)(context, builder)
        length = cgutils.unpack_tuple(builder, array.shape)[1]
        arrayobj.populate_array(
            view,
            data=start,
            shape=[length],
            strides=[array.itemsize],
            itemsize=array.itemsize,
            meminfo=None,
        )
        return view._getvalue()

    return view_type(rows, numba.intp), generate


def _array_type(kind: Any, dimensions: int) -> Any:
    return types.Array(kind.dtype, dimensions, "C")


def _build(context: Any, builder: Any, array_type: Any, address: Any, shape: list[Any]) -> Any:
    """A C-contiguous array at an address, without reference counting."""
    array = context.make_array(array_type)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    item = context.get_constant(types.intp, size)
    strides = [builder.mul(item, shape[1]), item] if len(shape) == 2 else [item]
    data = builder.inttoptr(address, context.get_data_type(array_type.dtype).as_pointer())
    arrayobj.populate_array(
        array, data=data, shape=shape, strides=strides, itemsize=item, meminfo=None
    )
    return array._getvalue()


def _vector_at(typing_context: Any, address: Any, length: Any, kind: Any) -> Any:
    """The array [length] of a NumPy scalar type at an address; the caller keeps it alive."""
    array_type = _array_type(kind, 1)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build(context, builder, signature.return_type, args[0], [args[1]])

    return array_type(numba.int64, numba.int64, kind), generate


def _matrix_at(typing_context: Any, address: Any, rows: Any, columns: Any, kind: Any) -> Any:
    """The array [rows, columns] of a NumPy scalar type at an address."""
    array_type = _array_type(kind, 2)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build(context, builder, signature.return_type, args[0], [args[1], args[2]])

    return array_type(numba.int64, numba.int64, numba.int64, kind), generate


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    view = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, view, [index])


def _store_release(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value (int64, 1-D); everything stored before is visible before it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return numba.void(array, numba.intp, numba.int64), generate


def _load_acquire(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index] (int64, 1-D); nothing read after it is older than the value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "acquire", 8)

    return numba.int64(array, numba.intp), generate


def _memory_fence(typing_context: Any) -> Any:
    """Nothing loaded after it is older than what was stored before it, as other cores see it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba.void(), generate


def _address_of(typing_context: Any, array: Any, index: Any) -> Any:
    """The address of array[index] (1-D); the caller keeps the array alive."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.ptrtoint(pointer, ir.IntType(64))

    return numba.int64(array, numba.intp), generate


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


def _interleaved(half: int) -> Any:
    """The order that takes bytes of two vectors in turn, of one half of each superlane."""
    order = []
    for superlane in range(0, _LINE, _OF_SUPERLANE):
        for j in range(_OF_SUPERLANE):
            order.append(superlane + 8 * half + j // 2 + j % 2 * _LINE)
    return ir.Constant(ir.VectorType(ir.IntType(32), _LINE), order)


def _transpose_rows(
    typing_context: Any, rows: Any, arguments: Any, sources: Any, targets: Any
) -> Any:
    """Lane j of a superlane of target i = lane i of it of source j; targets below 0 are left out.

    arguments int32: from ``sources`` and ``targets`` on, the numbers of 16 rows of uint8 [n, 320].
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, word = ir.IntType(64), ir.IntType(32)
        data = _data_of(context, builder, signature.args[0], args[0])
        told = _data_of(context, builder, signature.args[1], args[1])
        nowhere = builder.bitcast(
            cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), _LANES)),
            ir.IntType(8).as_pointer(),
        )

        def row(first: Any, j: int) -> Any:
            offset = builder.mul(builder.add(first, number(j)), number(4))
            return builder.sext(_load_at(builder, told, offset, word), number)

        starts = [
            builder.gep(data, [builder.mul(row(args[2], j), number(_LANES))])
            for j in range(_OF_SUPERLANE)
        ]
        ends = []
        for j in range(_OF_SUPERLANE):
            target = row(args[3], j)
            place = builder.gep(data, [builder.mul(target, number(_LANES))])
            wanted = builder.icmp_signed(">=", target, number(0))
            ends.append(builder.select(wanted, place, nowhere))
        orders = [_interleaved(0), _interleaved(1)]
        with cgutils.for_range(builder, number(_LANES // _LINE)) as loop:
            offset = builder.mul(loop.index, number(_LINE))
            vectors = [_load_at(builder, start, offset, _WIDE) for start in starts]
            for _ in range(4):  # each moves one bit of the lane's number into the row's
                vectors = [
                    builder.shuffle_vector(vectors[j], vectors[j + 8], order)
                    for j in range(8)
                    for order in orders
                ]
            for end, value in zip(ends, vectors, strict=True):
                _store_at(builder, end, offset, value)
        return context.get_dummy_value()

    return types.void(rows, arguments, types.int64, types.int64), generate


def _shuffle_lanes(typing_context: Any, source: Any, lanes: Any, out: Any) -> Any:
    """out[i] = the byte of i's superlane in ``source`` that lanes[i] names, 0 from 16 on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(64)
        data = [_data_of(context, builder, signature.args[i], args[i]) for i in range(3)]
        shuffle = builder.module.declare_intrinsic(
            "llvm.x86.ssse3.pshuf.b.128", fnty=ir.FunctionType(_PART, [_PART, _PART])
        )
        beyond = ir.Constant(_PART, [_OF_SUPERLANE - 1] * _OF_SUPERLANE)
        nothing = ir.Constant(_PART, [-128] * _OF_SUPERLANE)
        for offset in range(0, _LANES, _OF_SUPERLANE):
            values, which = (_load_at(builder, d, number(offset), _PART) for d in data[:2])
            absent = builder.icmp_unsigned(">", which, beyond)
            which = builder.select(absent, nothing, which)
            _store_at(builder, data[2], number(offset), builder.call(shuffle, [values, which]))
        return context.get_dummy_value()

    return types.void(source, lanes, out), generate


def _keyed_products(typing_context: Any, words: Any, key: Any) -> Any:
    """Keyed sum of products of uint32 [80], modulo 2^64: word i's with word i + 40's.

    key: uint32 [80].
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, word = ir.IntType(64), ir.IntType(32)
        data = [_data_of(context, builder, signature.args[i], args[i]) for i in (0, 1)]

        def keyed(first: int, count: int) -> Any:
            kind = ir.VectorType(word, count)
            value, own = (_load_at(builder, d, number(4 * first), kind) for d in data)
            return builder.bitcast(builder.add(value, own), ir.VectorType(number, count // 2))

        total = ir.Constant(number, 0)
        for count, firsts in ((16, (0, 16)), (8, (32,))):
            pairs = ir.VectorType(number, count // 2)
            below = ir.Constant(pairs, [0xFFFFFFFF] * (count // 2))
            above = ir.Constant(pairs, [32] * (count // 2))
            sums = ir.Constant(pairs, [0] * (count // 2))
            for first in firsts:
                a, b = keyed(first, count), keyed(first + 40, count)
                even = builder.mul(builder.and_(a, below), builder.and_(b, below))
                odd = builder.mul(builder.lshr(a, above), builder.lshr(b, above))
                sums = builder.add(sums, builder.add(even, odd))
            add_up = builder.module.declare_intrinsic(
                f"llvm.vector.reduce.add.v{count // 2}i64", fnty=ir.FunctionType(number, [pairs])
            )
            total = builder.add(total, builder.call(add_up, [sums]))
        return total

    return types.uint64(words, key), generate


yield_core: Any = types.ExternalFunction("sched_yield", types.int32())
system_call: Any = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))
memory_fence: Any = intrinsic(_memory_fence)
address_of: Any = intrinsic(_address_of)
row_of: Any = intrinsic(_row_of)
stream_row: Any = intrinsic(_stream_row)
vector_at: Any = intrinsic(_vector_at)
matrix_at: Any = intrinsic(_matrix_at)
prefetch_row: Any = intrinsic(_prefetch_row)
store_release: Any = intrinsic(_store_release)
load_acquire: Any = intrinsic(_load_acquire)
transpose_rows: Any = intrinsic(_transpose_rows)
shuffle_lanes: Any = intrinsic(_shuffle_lanes)
keyed_products: Any = intrinsic(_keyed_products)
