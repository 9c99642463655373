"""The values of a ``.data`` directive and the SRAM words they become, and the way back.

::

    .data mem_e[0-3]:8 f32 1.5                ; all 320 lanes of one word
    .data mem_w[0]:0 i8 1 -1 0*318 x320       ; the values again and again until 320 words are full
    .data mem_w[0-15]:0 i8 -7..7 x320         ; words dealt out: word r to slice r mod 16

A value of one byte takes one slice, of two bytes two, of four bytes four: byte j of every lane
lies in the j-th slice.  Of several times as many slices each group takes the next word in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from chip.encoding.assembly_error import AssemblyError, shown
from chip.isa import LANES, MAX_WORDS_PER_SLICE, SLICES_PER_HEMISPHERE

#: Slice 0..87, first word, uint8 [words, 320].
Words = tuple[int, int, NDArray[np.uint8]]

#: Bytes that all .data of a program fill at most.
MAX_DATA_BYTES = 64 << 20
_TYPES = {"i8": "<i1", "f16": "<f2", "i32": "<i4", "f32": "<f4"}

_INTEGER = re.compile(r"[+-]?[0-9]{1,12}|0x[0-9a-fA-F]{1,8}", re.ASCII)
_FLOAT = re.compile(
    r"[+-]?([0-9]{1,40}\.?[0-9]{0,60}|\.[0-9]{1,60})(e[+-]?[0-9]{1,3})?f?", re.ASCII
)
_RUN = re.compile(r"([+-]?[0-9]{1,7})\.\.([+-]?[0-9]{1,7})", re.ASCII)
_TIMES = re.compile(r"(.+)\*([0-9]{1,8})", re.ASCII)
_WORDS = re.compile(r"x([0-9]{1,8})", re.ASCII)


def read_data(members: Sequence[int], first: int, words: Sequence[str]) -> list[Words]:
    """What ``TYPE VALUES [xWORDS]`` puts into the slices ``members`` from word ``first`` on.

    Raises AssemblyError for anything else.
    """
    if not words or words[0] not in _TYPES:
        given = shown(words[0]) if words else "nothing"
        raise AssemblyError(f".data of {given}; use one of {', '.join(_TYPES)}")
    kind = np.dtype(_TYPES[words[0]])
    if len(members) % kind.itemsize:
        raise AssemblyError(
            f".data {words[0]} in {len(members)} slices; a value takes {kind.itemsize}, one for "
            "each byte"
        )
    groups = len(members) // kind.itemsize
    count = _WORDS.fullmatch(words[-1])
    values = _values(words[1:-1] if count else words[1:], words[0], kind)
    rows = int(count[1]) if count else -(-len(values) // LANES)
    if rows * LANES < len(values) or rows == 0:
        raise AssemblyError(f"{len(values)} values for {rows} words of {LANES}; raise {words[-1]}")
    if rows * LANES * kind.itemsize > MAX_DATA_BYTES:
        raise AssemblyError(f"{rows} words of {words[0]}; fill at most {MAX_DATA_BYTES} bytes")
    if first + -(-rows // groups) > MAX_WORDS_PER_SLICE:
        raise AssemblyError(f".data ends beyond word {MAX_WORDS_PER_SLICE - 1}, the last one")
    planes = np.resize(values, rows * LANES).view(np.uint8).reshape(rows, LANES, kind.itemsize)
    filled = [
        (
            int(slice_),
            first,
            np.ascontiguousarray(
                planes[place // kind.itemsize :: groups, :, place % kind.itemsize]
            ),
        )
        for place, slice_ in enumerate(members)
    ]
    return [entry for entry in filled if len(entry[2])]


def _values(words: Sequence[str], name: str, kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    parts: list[NDArray[np.generic]] = []
    left = MAX_DATA_BYTES // kind.itemsize
    for word in words:
        parts.append(_value(word, name, kind, left))
        left -= len(parts[-1])
    if not any(map(len, parts)):
        raise AssemblyError(".data without values; write at least one")
    return np.concatenate(parts)


def _value(word: str, name: str, kind: np.dtype[np.generic], most: int) -> NDArray[np.generic]:
    """One value, ``V*N`` or a run ``A..B``; at most ``most`` values."""
    run, times = _RUN.fullmatch(word), _TIMES.fullmatch(word)
    count = 1
    if run is not None:
        count = abs(int(run[2]) - int(run[1])) + 1
    elif times is not None:
        count = int(times[2])
    if count > most:
        raise AssemblyError(f"{shown(word)} is too much; fill at most {MAX_DATA_BYTES} bytes")
    if run is not None:
        for end in run.groups():
            _one(end, name, kind)  # refuses what the type cannot hold
        start, last = int(run[1]), int(run[2])
        step = 1 if last >= start else -1
        return np.arange(start, last + step, step).astype(kind)
    return np.repeat(_one(word if times is None else times[1], name, kind), count)


def _one(text: str, name: str, kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    whole = _INTEGER.fullmatch(text)
    bits = 8 * kind.itemsize
    if whole and text.startswith("0x"):
        if int(text, 16) < 1 << bits:
            return np.array([int(text, 16)], f"<u{kind.itemsize}").view(kind)
    elif whole and kind.kind == "i":
        if -(1 << bits - 1) <= int(text) < 1 << bits - 1:
            return np.array([int(text)], kind)
    elif kind.kind == "f" and _FLOAT.fullmatch(text):
        number = float(text.removesuffix("f"))
        with np.errstate(over="ignore"):
            value = np.array([number]).astype(kind)
        if np.isfinite(value).all():
            return value
    raise AssemblyError(f"{shown(text)} is no {name}; use V, V*TIMES, FIRST..LAST or 0x bits")


def data_lines(memory: Sequence[Words]) -> Iterator[str]:
    """``.data`` lines that fill the same words, byte for byte."""
    for slice_, first, rows in memory:
        side, number = "we"[slice_ // SLICES_PER_HEMISPHERE], slice_ % SLICES_PER_HEMISPHERE
        changes = np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1
        starts = [0, *changes.tolist()]
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            times = "" if end == start + 1 else f" x{end - start}"
            place = f"mem_{side}[{number}]:{first + start}"
            yield f".data {place} i8 {_row_text(rows[start])}{times}"


def _row_text(row: NDArray[np.uint8]) -> str:
    """A word as signed bytes, equal neighbours as V*N; one value alone fills the word."""
    signed = row.view(np.int8)
    starts = [0, *(np.flatnonzero(signed[1:] != signed[:-1]) + 1).tolist()]
    if len(starts) == 1:
        return str(int(signed[0]))
    lengths = np.diff([*starts, LANES]).tolist()
    return " ".join(
        f"{int(signed[at])}" if length == 1 else f"{int(signed[at])}*{length}"
        for at, length in zip(starts, lengths, strict=True)
    )
