"""Programs that do not fit each other: found before the run, and stopped in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from chip.checker import check
from chip.faults import LockstepViolation, ProgramFault
from chip.isa import C2C_QUEUE, Op, is_east
from chip.linking import link
from chip.program import Program
from chip.spec import ChipSpec
from interconnect.collectives import FabricCollective, compile_fabric_collective
from interconnect.collectives.programs import OPERATIONS
from interconnect.vectors import check_fabric
from interconnect.wiring import topology_of
from programs.running import StuckError
from tests.stands.fabric_runs import Machine, small_pages, values

SPEC = ChipSpec()


@pytest.fixture(autouse=True, scope="module")
def pages() -> Iterator[None]:
    with small_pages():
        yield


@cache
def collective(operation: str, chips: int, words: int) -> FabricCollective:
    return compile_fabric_collective(operation, topology_of(chips), words, SPEC, root=chips - 1)


@cache
def machine(operation: str, chips: int, words: int) -> Machine:
    done = collective(operation, chips, words)
    return Machine(done, values(np.random.default_rng(0), done, np.int32))


def findings(done: FabricCollective, changed: dict[int, Program]) -> list[str]:
    """``check_fabric`` with other programs on some chips."""
    programs, which = list(done.programs), list(done.program_of_chip)
    for chip, program in changed.items():
        which[chip] = len(programs)
        programs.append(program)
    return [str(f) for f in check_fabric(programs, which, done.topology.cables, SPEC)]


def own(done: FabricCollective, chip: int) -> Program:
    return done.programs[done.program_of_chip[chip]]


def apart(program: Program, block: int, element: int) -> tuple[Program, int]:
    """The program with one element of a block in a block of its own, and that block's number."""
    row = program.blocks[block]
    n1 = int(row["n1"])
    parts = []
    for first, count in ((0, element), (element, 1), (element + 1, n1 - element - 1)):
        part = np.asarray(row).reshape(1).copy()
        part["n1"] = count
        part["cycle"] += first * int(row["dc1"])
        parts.append(part[:count])  # none where there are no elements
    before, after = program.blocks[:block], program.blocks[block + 1 :]
    blocks = np.concatenate([before, *parts, after])
    return replace(program, blocks=blocks), block + len(parts[0])


def moved_send(
    done: FabricCollective, chip: int, rng: np.random.Generator, kind: str
) -> tuple[Program, int, int]:
    """One SEND of ``chip`` moved: the program, and the SEND's link and cycle as they were.

    cycle: by one cycle.  run: a whole run, with its Read, by one cycle.  link: to another link.
    """
    program = own(done, chip)
    sends = np.flatnonzero(program.blocks["op"] == Op.SEND)
    block = int(rng.choice(sends))
    if kind == "run":
        program = replace(program, blocks=program.blocks.copy())
        tag = program.blocks["want0"][block]
        both = (program.blocks["op"] == Op.READ) & (program.blocks["tag"] == tag)
        both[block] = True
        where = int(program.blocks["queue"][block]), int(program.blocks["cycle"][block])
        program.blocks["cycle"][both] += rng.choice([-1, 1])
    else:
        program, block = apart(program, block, int(rng.integers(program.blocks["n1"][block])))
        where = int(program.blocks["queue"][block]), int(program.blocks["cycle"][block])
        if kind == "cycle":
            program.blocks["cycle"][block] += rng.choice([-1, 1])
        else:
            east = is_east(int(program.blocks["s0"][block]))  # the stream ends at that edge
            links = [n for n in (range(8, 16) if east else range(8)) if n + C2C_QUEUE != where[0]]
            program.blocks["queue"][block] = C2C_QUEUE + int(rng.choice(links))
    return program, where[0] - C2C_QUEUE, where[1]


@pytest.mark.parametrize("seed", range(300))
@pytest.mark.cases(30)
def test_one_moved_send_is_found_and_stops_the_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chips = int(rng.choice([2, 4, 8, 16]))
    key = (str(rng.choice(OPERATIONS)), chips, int(rng.integers(1, 7)))
    done = collective(*key)
    senders = [c for c in range(chips) if (own(done, c).blocks["op"] == Op.SEND).any()]
    chip = int(rng.choice(senders))
    kind = ("cycle", "run", "link")[seed % 3]
    program, link_number, _ = moved_send(done, chip, rng, kind)

    found = findings(done, {chip: program})
    peer = int(done.topology.peer[chip, link_number])
    assert found and any(f"chip {chip} " in f and f"chip {peer} " in f for f in found), found
    if kind == "cycle":  # its vector is not on the stream then
        assert any(f.code in ("missing", "want") for f in check(program, SPEC))

    with pytest.raises((LockstepViolation, ProgramFault, StuckError)) as stopped:
        machine(*key).run({chip: link(program, SPEC)})
    error, text = stopped.value, str(stopped.value)
    if isinstance(error, LockstepViolation):
        assert {error.chip, error.peer} <= set(range(chips)) and error.chip != error.peer
        assert f"cycle {error.cycle}" in text and f"cycle {error.send_cycle}" in text
    elif isinstance(error, ProgramFault):  # found when linked, or a link that is not wired
        assert error.code in ("missing", "want", "link", "queue", "bank")
        assert 0 < error.cycle < done.cycles
    else:
        assert kind == "link" and f"chip {peer} waits on c2c" in text


@pytest.mark.parametrize("seed", range(6))
def test_a_moved_run_names_both_ends(seed: int) -> None:
    """Legal by itself, but a cycle late: the proof and the run name the same two instructions."""
    rng = np.random.default_rng(seed)
    done = collective("all-reduce", 2, 4)
    program, link_number, cycle = moved_send(done, 0, rng, "run")
    assert check(program, SPEC) == []
    found = findings(done, {0: program})
    assert len(found) == 1
    block = int(np.flatnonzero(program.blocks["op"] == Op.SEND)[0])
    late = {int(c) for c in program.blocks["cycle"] if abs(int(c) - cycle) == 1}.pop()
    arrives = late + SPEC.send_to_receive_cycles
    assert f"SEND on link {link_number} (block " in found[0] and block >= 0
    assert f"arrives at chip 1 link {link_number} at cycle {arrives}" in found[0]
    assert f"at cycle {cycle + SPEC.send_to_receive_cycles}" in found[0]
    with pytest.raises(LockstepViolation, match=f"SEND of chip 0 issued at cycle {late}"):
        machine("all-reduce", 2, 4).run({0: link(program, SPEC)})


def test_missing_and_extra_vectors() -> None:
    done = collective("all-to-all", 4, 2)
    program = own(done, 1)
    sends = np.flatnonzero(program.blocks["op"] == Op.SEND)
    without = replace(program, blocks=np.delete(program.blocks, sends[0]))
    found = findings(done, {1: without})
    assert len(found) == 1 and "sends no vector for it" in found[0] and "[missing]" in found[0]
    receives = np.flatnonzero(program.blocks["op"] == Op.RECEIVE)
    without = replace(program, blocks=np.delete(program.blocks, receives[0]))
    found = findings(done, {1: without})
    assert len(found) == 1 and "no RECEIVE is left for it" in found[0] and "[link]" in found[0]


def test_occupancy_is_exact() -> None:
    """23 cycles are less than 2952/125; on a link of exactly 23 cycles they are enough."""
    done = collective("broadcast", 2, 2)
    program = own(done, 1)
    program = replace(program, blocks=program.blocks.copy())
    program.blocks["dc1"][program.blocks["op"] == Op.SEND] = 23
    found = findings(done, {1: program})
    assert any("2952/125 cycles" in f and "is nearer" in f for f in found)
    exact = replace(SPEC, packet_bytes=115, clock_hz=2_500_000_000)
    assert exact.cycles_per_vector == 23
    programs = [own(done, 0), program]
    found = [str(f) for f in check_fabric(programs, [0, 1], done.topology.cables, exact)]
    assert not any("nearer" in f for f in found)


def test_cables_that_do_not_fit() -> None:
    done = collective("broadcast", 2, 1)
    programs = [own(done, 0), own(done, 1)]
    found = [str(f) for f in check_fabric(programs, [0, 1], [], SPEC)]
    # the word goes to the chip whose share it is and is gathered from there: two ends each way
    assert len(found) == 16 and all("no cable leads from this link" in f for f in found)
    wired = done.topology.cables.tolist()
    twice = [str(f) for f in check_fabric(programs, [0, 1], [*wired, [0, 0, 1, 3]], SPEC)]
    assert any("two cables end at chip 0 link 0" in f for f in twice)
    beyond = [str(f) for f in check_fabric(programs, [0, 1], [*wired, [0, 2, 7, 3]], SPEC)]
    assert beyond == [f for f in beyond if "it leads to chip 7 link 3" in f] != []
