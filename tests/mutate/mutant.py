"""One mutant: a place in a file and the few bytes that change there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Mutant:
    """``file`` is relative to the checkout; bytes [start, end) of it become ``text``.

    ``line`` and ``column`` count from 1 (columns in bytes).  ``before`` and ``after`` are the
    stripped line at which the change begins, ``compiled`` says whether numba compiles the function
    around it.
    """

    file: str
    line: int
    column: int
    start: int
    end: int
    text: str
    operator: str
    change: str
    before: str
    after: str
    compiled: bool

    @property
    def place(self) -> str:
        """As ``--place`` takes it."""
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def package(self) -> str:
        """The first folder of the file."""
        return self.file.split("/")[0]

    def apply(self, source: bytes) -> bytes:
        """The mutated source: as many lines as before."""
        return replace_bytes(source, self.start, self.end, self.text)


def replace_bytes(source: bytes, start: int, end: int, text: str) -> bytes:
    """``source`` with [start, end) replaced; lines that go away are made up for by empty ones."""
    lost = source[start:end].count(b"\n")
    return source[:start] + text.encode() + b"\n" * lost + source[end:]
