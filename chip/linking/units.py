"""State of the units while a program is resolved: SRAM, ALU results, planes, links.

Each step notes what an element does to its unit, and who made what it uses there.  It returns a
fault number (-1: none) and a detail: a word, an operand code, or what the planes say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.isa import ALU0, ALUS, C2C_QUEUE, LINKS, SELF, SLICES, VXM_QUEUE
from chip.jit import jit, jit_inline
from chip.linking.arguments import OPERAND_BYTES, is_vxm
from chip.linking.elements import (
    BANK,
    HI,
    IN_FLIGHT,
    LINK,
    LO,
    MISSING,
    NEVER,
    OP,
    S0,
    S1,
    TAG,
    WANT,
    WANT0,
    WANT1,
    Edges,
    Elements,
    Resolved,
    UnitRules,
    push,
)
from chip.linking.planes import Planes, accumulate, install, load, multiply, new_planes
from chip.opcodes import (
    ABC,
    ACC,
    GATHER,
    IW,
    LW,
    READ,
    RECEIVE,
    SCATTER,
    SEND,
    WRITE,
)

Array = NDArray[Any]


class _Memory(NamedTuple):
    """SRAM: of each word the last write and a list of the reads since, int32 [SLICES * words].

    node_element, node_next int32 [reads]: that list's nodes, nodes int64 [1] how many; read_cycle,
    read_bank int64 [SLICES]: the last read of each slice.
    """

    last_write: Array
    readers: Array
    node_element: Array
    node_next: Array
    nodes: Array
    read_cycle: Array
    read_bank: Array


class _Alus(NamedTuple):
    """Latest results, int64 [ALUS, a power of two]; results int64 [ALUS]: how many there were."""

    cycle: Array
    element: Array
    results: Array


class Units(NamedTuple):
    """All of it; links int64 [LINKS, 2]: the last SEND and RECEIVE of each."""

    memory: _Memory
    alus: _Alus
    planes: Planes
    links: Array


@jit
def new_units(c: Elements, rules: UnitRules) -> Any:
    """The units before a launch."""
    reads = 0
    for e in range(c.block.shape[0]):
        b = c.block[e]
        op = c.blocks[b, OP]
        reads += 1 if op == READ else 0
        if op == GATHER:
            reads += c.blocks[b, HI] - c.blocks[b, LO] + 1
    words = SLICES * 2 * rules.words_per_bank
    memory = _Memory(
        np.full(words, -1, np.int32),
        np.full(words, -1, np.int32),
        np.empty(reads + 1, np.int32),
        np.empty(reads + 1, np.int32),
        np.zeros(1, np.int64),
        np.full(SLICES, NEVER, np.int64),
        np.zeros(SLICES, np.int64),
    )
    kept = 1
    while kept < rules.alu_cycles + 2:
        kept *= 2
    alus = _Alus(
        np.full((ALUS, kept), NEVER, np.int64),
        np.full((ALUS, kept), -1, np.int64),
        np.zeros(ALUS, np.int64),
    )
    return Units(memory, alus, new_planes(c, rules), np.full((LINKS, 2), -1, np.int64))


@jit_inline
def act(
    c: Elements, rules: UnitRules, units: Units, found: Resolved, edges: Edges, e: int, now: int
) -> Any:
    """What element ``e`` does at cycle ``now``, its stream operands being resolved."""
    op = c.blocks[c.block[e], OP]
    code = -1
    detail = -1
    if op in (READ, GATHER):
        code, detail = _read(c, rules, units.memory, found, edges, e, now)
    elif op in (WRITE, SCATTER):
        code = _write(c, rules, units.memory, found, edges, e, now)
    elif is_vxm(op):
        code, detail = _compute(c, rules, units.alus, found, e, now)
    elif op == LW:
        code, detail = load(c, rules, units.planes, e, now)
    elif op == IW:
        code, detail = install(c, units.planes, found, e, now)
    elif op == ABC:
        code, detail = multiply(c, rules, units.planes, found, e, now)
    elif op == ACC:
        code, detail = accumulate(c, rules, units.planes, found, edges, e, now)
    elif op in (SEND, RECEIVE):
        link = c.queue[e] - C2C_QUEUE
        previous = units.links[link, op - SEND]
        if op == SEND and previous >= 0 and now - c.cycle[previous] < rules.send_spacing_cycles:
            code = LINK
        push(edges, previous, e)
        units.links[link, op - SEND] = e
    return code, detail


@jit_inline
def _words(c: Elements, e: int, plain: int, bank_words: int) -> Any:
    """First and last word an element may touch, and row 0 of its slice; ``plain``: its own word."""
    b = c.block[e]
    low = c.a[e] if c.blocks[b, OP] == plain else c.blocks[b, LO]
    high = c.a[e] if c.blocks[b, OP] == plain else c.blocks[b, HI]
    return low, high, c.queue[e] * 2 * bank_words


@jit_inline
def _read(
    c: Elements, rules: UnitRules, m: _Memory, found: Resolved, edges: Edges, e: int, now: int
) -> Any:
    code = -1
    detail = -1
    queue = c.queue[e]
    low, high, base = _words(c, e, READ, rules.words_per_bank)
    m.read_cycle[queue] = now
    m.read_bank[queue] = low // rules.words_per_bank
    for word in range(base + low, base + high + 1):
        w = np.int64(m.last_write[word])
        if w >= 0:
            if now < c.cycle[w] + rules.write_cycles:
                code = IN_FLIGHT
                detail = word
            if c.blocks[c.block[e], OP] == READ:
                found.prev_write[e] = w
            else:
                push(edges, w, e)
        node = m.nodes[0]
        m.node_element[node] = e
        m.node_next[node] = m.readers[word]
        m.readers[word] = node
        m.nodes[0] = node + 1
    return code, detail


@jit_inline
def _write(
    c: Elements, rules: UnitRules, m: _Memory, found: Resolved, edges: Edges, e: int, now: int
) -> int:
    code = -1
    queue = c.queue[e]
    low, high, base = _words(c, e, WRITE, rules.words_per_bank)
    if m.read_cycle[queue] == now and m.read_bank[queue] == low // rules.words_per_bank:
        code = BANK
    for word in range(base + low, base + high + 1):
        push(edges, np.int64(m.last_write[word]), e)
        m.last_write[word] = e
        node = m.readers[word]
        while node >= 0:
            r = np.int64(m.node_element[node])
            if c.blocks[c.block[r], OP] == READ:
                found.next_write[r] = e
            else:
                push(edges, r, e)
            node = m.node_next[node]
        m.readers[word] = -1
    return code


@jit_inline
def _compute(c: Elements, rules: UnitRules, alus: _Alus, found: Resolved, e: int, now: int) -> Any:
    """Resolve operands that are ALU results, and note this one."""
    code = -1
    detail = -1
    b = c.block[e]
    alu = c.queue[e] - VXM_QUEUE
    kept = alus.cycle.shape[1]
    for operand in range(2):
        s = c.blocks[b, S0] if operand == 0 else c.blocks[b, S1]
        if s < ALU0 or s > SELF:
            continue
        other = alu if s == SELF else s - ALU0
        source = -1
        for back in range(min(kept, alus.results[other])):
            r = (alus.results[other] - 1 - back) & (kept - 1)
            if alus.cycle[other, r] <= now - rules.alu_cycles:
                if s == SELF or alus.cycle[other, r] == now - rules.alu_cycles:
                    source = alus.element[other, r]
                break
        if source < 0:
            code = MISSING
            detail = s
            break
        wanted = c.blocks[b, WANT0] if operand == 0 else c.blocks[b, WANT1]
        if wanted != 0 and c.blocks[c.block[source], TAG] != wanted:
            code = WANT
            detail = s
        found.sources[c.slot[e] + OPERAND_BYTES * operand] = source * 16
    r = alus.results[alu] & (kept - 1)
    alus.cycle[alu, r] = now
    alus.element[alu, r] = e
    alus.results[alu] += 1
    return code, detail
