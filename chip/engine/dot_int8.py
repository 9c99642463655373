"""The dot products of an int8 column with two activations, in the form the processor does best.

AVX-512 VNNI multiplies unsigned by signed bytes, four at a time, and adds them up in int32.  So an
activation is laid out plus 128, and 128 times the column's sum is taken off again: modulo 2^32,
and exact, because the result itself fits.  Processors without it multiply int16.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import numpy as np
from llvmlite import binding, ir
from numpy.typing import NDArray

from chip.jit import Deferred, jit_inline

Array = NDArray[Any]

_VECTORS = 5  # of 64 bytes each: 320 lanes


def has_vnni() -> bool:
    """True where compiled code may use AVX-512 VNNI."""
    config = import_module("numba.core.config")
    if config.CPU_NAME or config.CPU_FEATURES:  # compiled for another processor
        return False
    return bool(binding.get_host_cpu_features().get("avx512vnni", False))


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


def _intrinsic(implementation: Any) -> Any:
    return Deferred(lambda: import_module("numba.extending").intrinsic(implementation))


lay_unsigned = _intrinsic(_lay_unsigned)
dot_unsigned = _intrinsic(_dot_unsigned)

#: What the processor does best, which numba's settings have a say in.
lay: Any = Deferred(lambda: (lay_unsigned if has_vnni() else cast(Any, lay_wide)).made)
dot: Any = Deferred(lambda: (dot_unsigned if has_vnni() else cast(Any, dot_wide)).made)
