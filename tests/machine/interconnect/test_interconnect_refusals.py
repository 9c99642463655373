"""What the interconnect refuses, in its own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chip.program import Program, new_blocks
from interconnect.clocks import draw_drift, simulate_run
from interconnect.clocks.drift import ClockError
from interconnect.collectives import collective_steps, compile_fabric_collective, plan_collective
from interconnect.collectives.node import compile_collective
from interconnect.vectors import FlightError, find_flights
from interconnect.wires import simulate
from interconnect.wiring import FabricError, active_nodes, link_to, topology_of
from tests.stands.wires import SPEC, random_schedule

NODE = topology_of(8)
CABLE = [(0, 0, 1, 0)]


def schedule(**rows: int) -> None:
    """Play a legal schedule of one message with other rows."""
    legal = random_schedule(NODE, 8, 1)
    changed = {name: np.full_like(getattr(legal, name), value) for name, value in rows.items()}
    simulate(replace(legal, **changed), NODE, SPEC)


#: name: (what is asked for, the error, its text)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "neighbour": (lambda: link_to(8), ValueError, r"neighbour 8: a node has neighbours 1\.\.7"),
    "collective": (
        lambda: compile_collective("gossip", 8, 4, SPEC),
        ValueError,
        "collective 'gossip': known are all-reduce, reduce-scatter",
    ),
    "node size": (
        lambda: compile_collective("all-reduce", 3, 4, SPEC),
        ValueError,
        "3 chips: a node's collective takes 2, 4 or 8",
    ),
    "no words": (
        lambda: compile_collective("all-reduce", 8, 0, SPEC),
        ValueError,
        "0 words: a one-shot collective takes 1 to 512",
    ),
    "many words": (
        lambda: compile_collective("all-reduce", 8, 513, SPEC),
        ValueError,
        "513 words: a one-shot collective takes 1 to 512",
    ),
    "fabric collective": (
        lambda: compile_fabric_collective("gossip", NODE, 4, SPEC),
        ValueError,
        "collective 'gossip': known are",
    ),
    "steps": (
        lambda: collective_steps(NODE, "gossip", "one-shot", 4),
        ValueError,
        "collective 'gossip': known are",
    ),
    "algorithm": (
        lambda: collective_steps(NODE, "all-reduce", "ring", 4),
        ValueError,
        "all-reduce by 'ring' on 8 chips: ",
    ),
    "root": (
        lambda: collective_steps(NODE, "broadcast", "one-shot", 4, root=8),
        ValueError,
        "4 words from chip 8: at least 1, of 8 chips",
    ),
    "no steps": (
        lambda: collective_steps(NODE, "broadcast", "one-shot", 0),
        ValueError,
        "0 words from chip 0: at least 1, of 8 chips",
    ),
    "bytes": (
        lambda: plan_collective(NODE, "all-reduce", 0, SPEC),
        ValueError,
        "0 bytes: a collective moves at least one",
    ),
    "links": (
        lambda: simulate(random_schedule(topology_of(16), 3, 30), NODE, SPEC),
        ValueError,
        r"directed links outside 0\.\.127",
    ),
    "vectors": (
        lambda: schedule(vectors=0),
        ValueError,
        r"vectors 0\.\.0: a run has 1\.\.[0-9]*; send fewer at once",
    ),
    "hops": (
        lambda: schedule(hop=-1),
        ValueError,
        r"hop -1\.\.-1: a run has 0\.\.[0-9]*; add cables that make the routes shorter",
    ),
    "messages": (
        lambda: schedule(message=1 << 40),
        ValueError,
        r"message 1099511627776\.\.[0-9]*: a run has 0\.\..*; schedule fewer at once",
    ),
    "window": (
        lambda: simulate(random_schedule(NODE, 8, 1), NODE, SPEC, window=0),
        ValueError,
        "window of 0 cycles: a link takes",
    ),
    "drift": (lambda: draw_drift(8, 1000.0, 0), ClockError, "an oscillator is off by 0 to 999"),
    "run": (
        lambda: simulate_run(CABLE, np.zeros(2, np.int64), -1, 100, 5),
        ClockError,
        "run, deskew interval and budget must not be negative",
    ),
    "node": (
        lambda: active_nodes(topology_of(72), 1, [9]),
        FabricError,
        "node 9 is not in use: 0, 1, 2, 3, 4, 5, 6, 7 are",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    act, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_the_smallest_and_largest_that_are_not_refused() -> None:
    assert [link_to(k) for k in (1, 7)] and len(draw_drift(8, 999.0, 0)) == 8
    assert compile_collective("all-reduce", 2, 1, SPEC)
    assert simulate(random_schedule(NODE, 8, 1), NODE, SPEC, window=1).cycles > 0


def test_programs_that_do_not_match_have_no_flights() -> None:
    """A chip sends a vector that the other does not take."""
    from chip.isa import Op

    sends = new_blocks(1)
    sends["queue"], sends["op"], sends["s0"], sends["w0"] = 128, Op.SEND, 32, 1
    programs = [Program(sends, [], [], 100), Program(new_blocks(0), [], [], 100)]
    with pytest.raises(FlightError, match="1 vectors sent, 0 received; prove the programs with"):
        find_flights(programs, [0, 1], CABLE, SPEC)
