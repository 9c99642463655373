"""Seeded damage to real samples: of bytes, of text, and of plain data that is packed again."""

from __future__ import annotations

import json
import random
from typing import Any

#: What breaks readers: edges of integer types, floats that are none, long and empty things.
NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    319,
    320,
    321,
    4096,
    8192,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
    -(2**63),
    1e-300,
    1e300,
    0.5,
    -0.0,
    float("inf"),
    float("nan"),
    True,
    False,
    None,
]
TEXTS: list[Any] = [
    "",
    "x",
    "\x00",
    "é",
    "\ud7ff",
    "a" * 5000,
    "%s%n",
    "../../etc",
    "1",
    "NaN",
    "1e999",
    "[",
    "{",
]
WORDS = (
    b"\x00",
    b"\xff",
    b"\xff\xfe",
    b"\n",
    b"\r",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"[[",
    b"]]",
    b",",
    b":",
    b"=",
    b"#",
    b".",
    b"-",
    b"+",
    b"e",
    b"0",
    b"9" * 40,
    b"1e999",
    b"nan",
    b"inf",
    b"true",
    b"null",
    b"x" * 300,
    b"\xe2\x80\xa8",
    b"[" * 200,
    b"/",
    b"@",
    b"0x",
    b"1_000",
)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few flips, cuts, repeats, insertions and swaps of words."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at:at] = rng.choice(WORDS)
        elif kind == 2:
            del out[at:end]
        elif kind == 3:
            out[at:at] = out[at:end] * rng.choice((1, 2, 50))
        elif kind == 4:
            out[at:end] = rng.randbytes(end - at)
        elif kind == 5:
            out = out[:at]
        else:
            other = rng.randrange(len(out) + 1)
            out[at:end] = out[other : other + end - at]
    return bytes(out[: 1 << 22])


def damage_value(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """Plain data with one value somewhere replaced, removed, doubled, moved or wrapped."""
    if isinstance(value, (dict, list)) and value and (depth == 0 or rng.random() < 0.8):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        kind = rng.randrange(10)
        changed = dict(value) if isinstance(value, dict) else list(value)
        if kind == 0:
            del changed[key]
        elif kind == 1 and isinstance(changed, dict):
            changed[rng.choice((*TEXTS[:8], f"{key}x"))] = changed[key]
        elif kind == 1:
            changed.insert(key, changed[key])
        elif kind == 2:
            changed[key] = changed[rng.choice(keys)]
        else:
            changed[key] = damage_value(changed[key], rng, depth + 1)
        return changed
    kind = rng.randrange(8)
    if kind == 0 and isinstance(value, int) and not isinstance(value, bool):
        return value + rng.choice((-1, 1, 2**16, -(2**16)))
    if kind <= 4:
        return rng.choice(NUMBERS)
    if kind == 5:
        return rng.choice(TEXTS)
    if kind == 6:
        return rng.choice(([], {}, [value], [[value] * 3] * 3, {"x": value}, [0] * 2000))
    for _ in range(rng.choice((5, 60, 500))):
        value = [value]
    return value


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """JSON that stays JSON most of the time."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    return json.dumps(damage_value(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def damage_toml(data: bytes, rng: random.Random) -> bytes:
    """TOML with one value or line replaced, most of the time."""
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif "=" in lines[at]:
        name = lines[at].split("=")[0]
        choices = (
            *map(repr, NUMBERS[:29]),
            "inf",
            "nan",
            "true",
            "[]",
            "{}",
            "[[1]]",
            '""',
            '"x"',
            "1979-05-27T07:32:00Z",
            "0xff",
            "9" * 400,
        )
        lines[at] = f"{name}= {rng.choice(choices)}"
    return "\n".join(lines).encode()
