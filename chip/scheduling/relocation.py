"""Scheduled code moved in time and memory, with gangs and tags numbered anew, and put together."""

from __future__ import annotations

import numpy as np

from chip.isa import Op
from chip.program import BlockTable, Program
from chip.scheduling.places import Symbol

#: The MEM queues of each gang that a table names by its place in this list.
Gangs = list[tuple[int, ...]]


def shifted(table: BlockTable, cycles: int) -> BlockTable:
    """A copy of ``table`` moved in time."""
    moved = table.copy()
    moved["cycle"] += cycles
    return moved


def relocate(
    table: BlockTable, symbols: list[Symbol | None], bases: dict[Symbol, int], shift_cycles: int
) -> BlockTable:
    """A copy of ``table`` moved in time with symbolic addresses resolved by ``bases``."""
    moved = table.copy()
    moved["cycle"] += shift_cycles
    base = np.array([0 if s is None else bases[s] for s in symbols], np.int32)
    moved["a"] += base
    windowed = (table["op"] == Op.GATHER) | (table["op"] == Op.SCATTER)
    moved["lo"][windowed] += base[windowed]
    moved["hi"][windowed] += base[windowed]
    return moved


def translate_gangs(table: BlockTable, own: Gangs, shared: Gangs) -> None:
    """Number a table's gangs by ``shared``, adding those it lacks."""
    shared.extend(gang for gang in own if gang not in shared)
    numbers = np.array([shared.index(gang) for gang in own], np.int32)
    ganged = table["gang"] >= 0
    table["gang"][ganged] = numbers[table["gang"][ganged]]


def rename_tags(table: BlockTable, base: int) -> None:
    """Give a relocated copy tags of its own."""
    for column in ("tag", "want0", "want1"):
        named = table[column] > 0
        table[column][named] += base


def program_of(tables: list[BlockTable], gangs: Gangs, cycles: int) -> Program:
    """A program from relocated tables, sorted by (cycle, queue)."""
    table = np.concatenate(tables)
    table = table[np.lexsort((table["op"], table["queue"], table["cycle"]))]
    return Program(table, gangs, [], cycles)
