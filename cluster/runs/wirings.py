"""What is asked of a wiring, from its name to facts: its size, and a route through it.

Loads no compiler, as ``lpu fabric info`` needs none; a route does, when one is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chip.isa import LINKS
from chip.spec import ChipSpec, load_chip_spec
from cluster.errors import InputError
from interconnect.wiring import (
    Topology,
    cable_faults,
    diameter,
    minimal_routes,
    named_topology,
)

Facts = dict[str, Any]


def machine_of(chips: str, chip: str | None) -> tuple[Topology, ChipSpec]:
    """A wiring by its number of chips, name or file, and a chip that its cables fit.

    chip: a preset or a TOML file, None for the wiring's own.  Raises an LpuError where there is no
    such wiring or chip, or where they do not go together.
    """
    wiring = named_topology(chips)
    spec = load_chip_spec(chip if chip is not None else wiring.chip_spec)
    faults = cable_faults(wiring, spec)
    if faults:
        raise InputError(f"--chips {chips}: {faults[0]} ({len(faults)} such faults)")
    return wiring, spec


def wiring_facts(wiring: Topology, spec: ChipSpec) -> Facts:
    """Cables, hops, memory and latency of a wiring.

    ``links_without_frames``: numbers of cabled links over which programs may send, but no
    collective and no route is scheduled.
    """
    from interconnect.wires import LINK_NUMBERS

    hops = diameter(wiring)
    cabled = {int(link) for link in wiring.cables[:, 1::2].ravel()}
    return {
        "topology": wiring.name,
        "chips": wiring.chips,
        "nodes": wiring.nodes,
        "racks": wiring.racks,
        "cables": len(wiring.cables),
        "diameter_hops": hops,
        "sram_bytes": wiring.chips * spec.sram_bytes,
        "chip": spec.name,
        "hop_cycles": spec.hop_cycles,
        "worst_latency_ns": hops * (1e9 * spec.hop_cycles / spec.clock_hz),
        "link_bytes_per_s": spec.link_bytes_per_s,
        "links_without_frames": sorted(cabled - set(LINK_NUMBERS)),
    }


def follow_route(
    wiring: Topology, spec: ChipSpec, source: int, destination: int, vectors: int, salt: int
) -> Facts:
    """The way of ``vectors`` vectors from a chip to another, hop by hop, with the cycles it takes.

    salt: which of several equally short routes.  Raises InputError for a chip that is not there.
    """
    for name, number in (("source", source), ("destination", destination)):
        if not 0 <= number < wiring.chips:
            raise InputError(f"{name} {number}: the wiring has chips 0 to {wiring.chips - 1}")
    from interconnect.wires import schedule_messages

    ends = np.array([[source], [destination]])
    length, links = minimal_routes(wiring, ends[0], ends[1], np.array([salt]))
    wires = schedule_messages(
        links,
        length,
        wiring.peer_link,
        np.array([vectors]),
        np.zeros(1, np.int64),
        spec,
        np.zeros(wiring.chips * LINKS, np.int64),
        sources=ends[0],
        destinations=ends[1],
    )
    hops = [
        {
            "chip": int(c),
            "link": int(k),
            "to": int(wiring.peer[c, k]),
            "cycle": int(t),
            "arrives": int(t) + wires.latency,
        }
        for c, k, t in zip(wires.chip, wires.link, wires.cycle, strict=True)
    ]
    cycles = spec.hop_cycles * len(hops)
    if hops:
        first, last = hops[0]["cycle"], hops[-1]["cycle"]
        cycles = last - first + spec.hop_cycles + wires.spacing * (vectors - 1)
    return {
        "source": source,
        "destination": destination,
        "hops": len(hops),
        "cycles": cycles,
        "ns": 1e9 * cycles / spec.clock_hz,
        "vectors": vectors,
        "route": hops,
    }
