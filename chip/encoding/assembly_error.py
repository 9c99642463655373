"""How the assembler refuses text."""

from __future__ import annotations


class AssemblyError(ValueError):
    """Text that is no program: one line with its number, what is wrong and what would mend it."""


def shown(text: str) -> str:
    """``text`` as one short printable piece of a message."""
    return ascii(text if len(text) <= 40 else text[:37] + "...")
