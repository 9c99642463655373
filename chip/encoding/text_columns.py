"""Many lines of text at once: every column of pieces is given for all lines, then all is rendered.

A piece of a line is one of a few texts, an integer, or a *blank* of fixed width whose place is
told, so that a number can be put in later.  Text is ASCII; lines are not ended by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit

I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Where = NDArray[np.bool_] | None

_TEXT, _INTEGER, _THOUSANDTHS, _BLANK = range(1, 5)  # 0: nothing


@dataclass(frozen=True, eq=False)
class Rendered:
    """Lines one after another, uint8; the bytes of each, int64 [lines].

    places: where each blank begins, by its name, int64 [lines].
    """

    text: Bytes
    lengths: I64
    places: dict[str, I64]


class TextColumns:
    """The pieces of ``lines`` lines from left to right; ``where`` (bool [lines]): only in those."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._kinds: list[NDArray[np.int8] | int] = []
        self._values: list[I64 | int] = []
        self._strings: dict[str, int] = {}
        self._choices: dict[tuple[str, ...], I64] = {}
        self._blanks: list[str] = []

    def text(self, piece: str, where: Where = None) -> None:
        """The same text in all lines."""
        self._add(_TEXT, self._string(piece), where)

    def choice(self, pieces: tuple[str, ...], index: I64, where: Where = None) -> None:
        """``pieces[index]``; index int64 [lines], in range also where nothing is written."""
        if pieces not in self._choices:
            numbers = [self._string(piece) for piece in pieces]
            self._choices[pieces] = np.array(numbers, np.int64)
        self._add(_TEXT, self._choices[pieces][index], where)

    def integer(self, values: I64, where: Where = None) -> None:
        """Decimal digits of int64 [lines] above -2**63, with a minus if negative."""
        self._add(_INTEGER, values, where)

    def thousandths(self, values: I64) -> None:
        """Three decimal digits of int64 [lines] in 0..999."""
        self._add(_THOUSANDTHS, values, None)

    def blank(self, name: str, width: int) -> None:
        """``width`` spaces; where they begin is told by ``name``."""
        self._blanks.append(name)
        self._add(_BLANK, width, None)

    def render(self) -> Rendered:
        """All lines."""
        kinds = np.empty((len(self._kinds), self._lines), np.int8)
        values = np.empty(kinds.shape, np.int64)
        for column, (kind, value) in enumerate(zip(self._kinds, self._values, strict=True)):
            kinds[column], values[column] = kind, value
        strings = np.frombuffer("".join(self._strings).encode("ascii"), np.uint8)
        ends = np.cumsum([0, *(len(piece) for piece in self._strings)], dtype=np.int64)
        lengths = _lengths(kinds, values, ends)
        text = np.empty(int(lengths.sum()), np.uint8)
        places = np.zeros((len(self._blanks), self._lines), np.int64)
        _fill(kinds, values, strings, ends, text, places)
        return Rendered(text, lengths, dict(zip(self._blanks, places, strict=True)))

    def _string(self, piece: str) -> int:
        return self._strings.setdefault(piece, len(self._strings))

    def _add(self, kind: int, value: I64 | int, where: Where) -> None:
        self._kinds.append(kind if where is None else where.astype(np.int8) * np.int8(kind))
        self._values.append(value)


@jit
def _digits(value: int) -> int:
    """Decimal digits of a value of 0 or more."""
    digits = 1
    while value >= 10:
        value //= 10
        digits += 1
    return digits


@jit
def _lengths(kinds: NDArray[np.int8], values: I64, ends: I64) -> I64:
    """Bytes of each line, int64 [lines]."""
    lengths = np.zeros(kinds.shape[1], np.int64)
    for line in range(kinds.shape[1]):
        total = 0
        for column in range(kinds.shape[0]):
            kind, value = kinds[column, line], values[column, line]
            if kind == _TEXT:
                total += ends[value + 1] - ends[value]
            elif kind == _INTEGER:
                total += _digits(abs(value)) + (value < 0)
            elif kind == _THOUSANDTHS:
                total += 3
            elif kind == _BLANK:
                total += value
        lengths[line] = total
    return lengths


@jit
def _fill(
    kinds: NDArray[np.int8], values: I64, strings: Bytes, ends: I64, text: Bytes, places: I64
) -> None:
    at = 0
    for line in range(kinds.shape[1]):
        blank = 0
        for column in range(kinds.shape[0]):
            kind, value = kinds[column, line], values[column, line]
            if kind == _TEXT:
                for i in range(ends[value], ends[value + 1]):
                    text[at] = strings[i]
                    at += 1
            elif kind in (_INTEGER, _THOUSANDTHS):
                if value < 0:
                    text[at] = 45  # a minus
                    at += 1
                    value = -value
                digits = 3 if kind == _THOUSANDTHS else _digits(value)
                for i in range(digits):
                    text[at + digits - 1 - i] = 48 + value % 10
                    value //= 10
                at += digits
            elif kind == _BLANK:
                places[blank, line] = at
                blank += 1
                text[at : at + value] = 32
                at += value
