"""Flights from Send to Receive, against the single instructions of both ends."""

from __future__ import annotations

from collections import Counter

import pytest

from chip.isa import C2C_QUEUE, Op
from chip.program import Program, expand
from chip.spec import ChipSpec
from interconnect.collectives import FabricCollective, compile_fabric_collective
from interconnect.vectors import FlightError, Flights, find_flights
from interconnect.wiring import named_topology

SPEC = ChipSpec()


@pytest.fixture(
    scope="module", params=[("8", "all-gather"), ("16", "all-reduce"), ("64", "broadcast")]
)
def collective(request: pytest.FixtureRequest) -> FabricCollective:
    chips, operation = request.param
    return compile_fabric_collective(operation, named_topology(chips), 3, SPEC)


def flights_of(made: FabricCollective, programs: list[Program] | None = None) -> Flights:
    cables = [tuple(cable) for cable in made.topology.cables.tolist()]
    return find_flights(
        programs or made.programs,
        made.program_of_chip,
        cables,  # type: ignore[arg-type]
        SPEC,
    )


def test_every_vector_is_in_one_flight(collective: FabricCollective) -> None:
    flights = flights_of(collective)
    sent: Counter[tuple[int, int]] = Counter()
    cycles: dict[tuple[int, int, str], set[int]] = {}
    for chip, number in enumerate(collective.program_of_chip):
        rows = expand(collective.programs[number])
        for op in (Op.SEND, Op.RECEIVE):
            for row in rows[rows["op"] == op]:
                link = int(row["queue"]) - C2C_QUEUE
                cycles.setdefault((chip, link, op.name), set()).add(int(row["cycle"]))
                if op is Op.SEND:
                    sent[chip, link] += 1
    flown: Counter[tuple[int, int]] = Counter()
    for i in range(len(flights)):
        flown[int(flights.chip[i]), int(flights.link[i])] += int(flights.vectors[i])
        assert flights.received[i] - flights.sent[i] == SPEC.send_to_receive_cycles
        out = int(flights.chip[i]), int(flights.link[i]), "SEND"
        into = int(flights.to_chip[i]), int(flights.to_link[i]), "RECEIVE"
        assert int(flights.sent[i]) in cycles[out] and int(flights.received[i]) in cycles[into]
        for chip, block, op in (
            (flights.chip[i], flights.block[i], Op.SEND),
            (flights.to_chip[i], flights.to_block[i], Op.RECEIVE),
        ):
            program = collective.programs[collective.program_of_chip[chip]]
            assert program.blocks["op"][block] == op
    assert flown == sent and sum(sent.values()) > 0


def test_programs_that_do_not_meet_are_refused(collective: FabricCollective) -> None:
    number = collective.program_of_chip[0]
    own = collective.programs[number]
    sends = own.blocks["op"] == Op.SEND
    for change, says in (("late", "not 637 cycles later"), ("lost", "received")):
        blocks = own.blocks.copy()
        if change == "late":
            blocks["cycle"][sends] += 1
        else:
            blocks = blocks[~sends]
        programs = list(collective.programs)
        programs[number] = Program(blocks, own.gangs, own.maps, own.cycles)
        with pytest.raises(FlightError, match=says):
            flights_of(collective, programs)
