"""Fields of a plan and of its chip by name, and their values as people write them.

A number is ``650``, ``1_200_000_000`` or ``1.2e9``; several are ``650,325``, ``64..1024``
(doubling) or ``300..400+25`` (in steps of 25).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from typing import Any

from chip.spec import PRESETS, ChipSpec
from cluster.errors import InputError

#: What of a plan besides its chip can be changed and swept, and its type.
PLAN_FIELDS: dict[str, type] = {
    "chips": int,
    "context": int,
    "batch": int,
    "tp": int,
    "dtype": str,
    "wiring": str,
}
#: How a field of the chip is written.
CHIP = "chip."
#: Values of one axis at most.
MOST_VALUES = 64

_NUMBER = re.compile(r"[0-9][0-9_]*(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_RANGE = re.compile(r"(?P<first>.+?)\.\.(?P<last>[^+]+?)(\+(?P<step>.+))?")


def field_type(name: str) -> type | None:
    """The type of the field ``context`` or ``chip.hop_cycles`` by its name; None if it is none."""
    if name in PLAN_FIELDS:
        return PLAN_FIELDS[name]
    known = {f.name for f in fields(ChipSpec)}
    if not name.startswith(CHIP) or name.removeprefix(CHIP) not in known:
        return None
    return type(getattr(PRESETS["groq-lpu-1"], name.removeprefix(CHIP)))


def one_change(option: str, text: str) -> tuple[str, Any]:
    """A field's name and its value of ``FIELD=VALUE``.

    Raises InputError, which names ``option``, for a field or a value that is none.
    """
    name, equals, value = text.partition("=")
    kind = field_type(name)
    if not equals or kind is None:
        raise InputError(
            f"{option} {text[:80]}: use chip.FIELD=VALUE, or VALUE of {', '.join(PLAN_FIELDS)}; "
            f"fields of a chip are {', '.join(sorted(f.name for f in fields(ChipSpec)))}"
        )
    where = f"{option} {text[:80]}"
    if kind is tuple:
        return name, tuple(whole(where, part) for part in value.split(",") if part)
    return name, _reader(kind)(where, value)


def axis_values(option: str, text: str) -> tuple[str, list[Any]]:
    """A field's name and its values of ``FIELD=VALUES``; numbers, or words between commas.

    Raises InputError as ``one_change`` does.
    """
    name, equals, listed = text.partition("=")
    kind = field_type(name)
    if not equals or kind is None or kind is tuple:
        raise InputError(
            f"{option} {text[:80]}: use {', '.join(PLAN_FIELDS)} or chip.FIELD, a number of the "
            "chip, as in chips=64..1024 or chip.hop_cycles=650,325"
        )
    return name, several(f"{option} {text[:80]}", listed, kind)


def several(where: str, text: str, kind: type = int) -> list[Any]:
    """The values of ``A,B,C``, ``A..B`` or ``A..B+STEP``, in this order, each once."""
    read = _reader(kind)
    found: list[Any] = []
    for part in text.split(","):
        span = _RANGE.fullmatch(part)
        if span is None or kind is str:
            found.append(read(where, part))
            continue
        first, last = read(where, span["first"]), read(where, span["last"])
        step = None if span["step"] is None else read(where, span["step"])
        if not 0 < first <= last or (step is not None and step <= 0):
            raise InputError(
                f"{where}: a range goes up from above 0, as in 64..1024 or 300..400+25"
            )
        found += _spread(where, first, last, step)
    if len(found) > MOST_VALUES:
        raise _too_many(where)
    return list(dict.fromkeys(found))


def _spread(where: str, first: float, last: float, step: float | None) -> Iterator[Any]:
    """Doubling, or by ``step``."""
    value, number = first, 0
    while value <= last:
        yield value
        number += 1
        if number > MOST_VALUES:
            raise _too_many(where)
        value = 2 * value if step is None else first + number * step


def _too_many(where: str) -> InputError:
    return InputError(f"{where}: more than {MOST_VALUES} values; use fewer, or larger steps")


def _reader(kind: type) -> Callable[[str, str], Any]:
    return {int: whole, float: real, str: word}[kind]


def whole(where: str, text: str) -> int:
    """A whole number, also written as 1.2e9."""
    number = _decimal(text)
    if number is None or number != number.to_integral_value():
        raise InputError(f"{where}: {text[:40]!r} is no whole number; write 650 or 1.2e9")
    return int(number)


def real(where: str, text: str) -> float:
    """A number."""
    number = _decimal(text)
    if number is None or not math.isfinite(float(number)):
        raise InputError(f"{where}: {text[:40]!r} is no number; write 0.5 or 2.4e10")
    return float(number)


def word(where: str, text: str) -> str:
    """Anything but nothing."""
    if not text:
        raise InputError(f"{where}: nothing is given; write a value after the =")
    return text


def _decimal(text: str) -> Decimal | None:
    """The number that a text is, signs apart only in an exponent; None if it is none."""
    sign = -1 if text.startswith("-") else 1
    plain = text.strip().removeprefix("-")
    if len(plain) > 40 or not _NUMBER.fullmatch(plain):
        return None
    return sign * Decimal(plain.replace("_", ""))
