"""Which chips there are and which cables join them: arrays, by arithmetic, never an object a cable.

Knows the wirings of ``docs/fabric.md`` and topology files; knows no routes, clocks or programs.
Published (ISCA'22): 7 local and 4 global links a chip, 28 cables in a node of eight, 33 nodes all
to all, racks of nine nodes whose 288 global ports are half for the rack and half for other racks,
145 racks.  Assumed: which link is which, and which rack port goes to which rack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuError
from chip.isa import LINKS
from chip.spec import PRESETS, ChipSpec
from chip.toml_files import TomlFileError, read_toml
from interconnect.wiring.node import NODE_SIZES, link_to

#: Published (ISCA'22): chips of a node, nodes of a rack, racks and nodes of the largest systems.
NODE, RACK_NODES, MAX_RACKS, MAX_NODES = 8, 9, 145, 33
LPX_TRAYS = 32
#: Nodes of the longest chain (assumed): as many as the largest system has.
MAX_CHAIN_NODES = RACK_NODES * MAX_RACKS
#: Limits of a topology file.
MAX_CHIPS, MAX_FILE_BYTES = 16_384, 4 << 20
#: What a distance is where no cables lead.
UNREACHABLE = 255

#: Global links of a chip (assumed: which; published: four), then those of a dragonfly: two stay
#: in the rack and two leave it (published: 144 ports of a rack each).
GLOBAL_LINKS = (3, 4, 12, 13)
_INNER_LINKS, _OUTER_LINKS = (3, 4), (12, 13)
#: Of a chain: the links to the next node and from the one before.
_ONWARD, _BACK = 12, 3
_BUILT_IN = ("node", "nodes", "dragonfly", "lpx", "chain")
_FIELDS = ("name", "chips", "cables")

Ints = NDArray[np.int64]


class FabricError(LpuError, ValueError):
    """A fabric that cannot exist; one line says what, where and what would mend it."""


@dataclass(frozen=True, eq=False)
class Topology:
    """Chips and cables.  Arrays are read-only.

    name: "node", "nodes", "dragonfly", "chain", "lpx", or of a file its own name or "custom".
    chips_per_node: 8, or the chips of a smaller node; a file's chips are nodes of one.
    nodes_per_rack: 9 of a dragonfly, otherwise the number of nodes.
    cables: int32 [n, 4]: (chip a, link of a, chip b, link of b), a < b, sorted by a, b, link of a.
    peer: int32 [chips, 16]: the chip at the other end of a link, or -1.
    peer_link: int8 [chips, 16]: the link number there, or -1.
    chip_spec: a preset of ``chip.spec``.
    """

    name: str
    chips: int
    chips_per_node: int
    nodes_per_rack: int
    cables: NDArray[np.int32]
    peer: NDArray[np.int32]
    peer_link: NDArray[np.int8]
    chip_spec: str = "groq-lpu-1"

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.chips // self.chips_per_node

    @property
    def racks(self) -> int:
        """Number of racks; one unless it is a dragonfly."""
        return self.nodes // self.nodes_per_rack


def topology_of(chips: int) -> Topology:
    """The wiring of a number of chips; where two exist (144, 216), nodes all to all.

    A node of 1, 2, 4, 8 chips; 16 to 264 chips in nodes all to all; 288 to 10,440 chips in racks
    of 72.  Raises FabricError naming the nearest sizes.
    """
    if chips in NODE_SIZES:
        peer, peer_link = _nodes(1, chips)
        return _topology("node", chips, 1, peer, peer_link)
    nodes, odd = divmod(chips, NODE)
    if not odd and 2 <= nodes <= MAX_NODES:
        return _all_to_all("nodes", nodes, "groq-lpu-1")
    racks, odd = divmod(chips, NODE * RACK_NODES)
    if not odd and MAX_NODES // RACK_NODES < racks <= MAX_RACKS:
        return _dragonfly(racks)
    near = _nearest(chips, usual_sizes())
    raise FabricError(f"{_shown(chips)} chips: no wiring has this size; use {near}")


def lpx_rack() -> Topology:
    """32 trays of eight groq-3-lp30 chips, wired as 32 nodes all to all: 256 chips.

    Published by NVIDIA: 32 trays of eight, 256 chips.  Assumed: one cable between every two trays.
    """
    return _all_to_all("lpx", LPX_TRAYS, "groq-3-lp30")


def chain_of(chips: int) -> Topology:
    """Nodes in a row, for pipelines: every chip joined to its like in the next node.

    Consecutive nodes get 8 of their 32 global ports: link 12 of a chip leads to link 3 of the chip
    of the same number in the next node; links 4 and 13 stay free.  Chips of one node are a node.
    Raises FabricError naming the nearest sizes.
    """
    if chips in NODE_SIZES:
        return topology_of(chips)
    nodes, odd = divmod(chips, NODE)
    if odd or not 2 <= nodes <= MAX_CHAIN_NODES:
        raise FabricError(
            f"{_shown(chips)} chips: no chain has this size; use {_nearest(chips, chain_sizes())}"
        )
    peer, peer_link = _nodes(nodes, NODE)
    before = np.arange(chips - NODE)
    peer[before, _ONWARD], peer_link[before, _ONWARD] = before + NODE, _BACK
    peer[before + NODE, _BACK], peer_link[before + NODE, _BACK] = before, _ONWARD
    return _topology("chain", NODE, nodes, peer, peer_link)


def usual_sizes() -> list[int]:
    """Numbers of chips that ``topology_of`` wires, ascending."""
    several = range(2 * NODE, MAX_NODES * NODE + 1, NODE)
    racks = (NODE * RACK_NODES * n for n in range(MAX_NODES // RACK_NODES + 1, MAX_RACKS + 1))
    return [*NODE_SIZES, *several, *racks]


def chain_sizes() -> list[int]:
    """Numbers of chips that ``chain_of`` wires, ascending."""
    return [*NODE_SIZES, *range(2 * NODE, MAX_CHAIN_NODES * NODE + 1, NODE)]


def _nearest(chips: int, sizes: Sequence[int]) -> str:
    """The sizes on both sides of ``chips``, or the one that there is."""
    near = [*[s for s in sizes if s < chips][-1:], *[s for s in sizes if s > chips][:1]]
    return " or ".join(map(str, near))


def named_topology(name_or_path: str | Path) -> Topology:
    """A number of chips ("264"), "chain-264", "lpx", or a file.

    A file has ``chips``, ``cables``, and perhaps a ``name``.  It is TOML or JSON; ``cables`` is a
    list of [chip a, link of a, chip b, link of b] with links 0..15.  Raises FabricError, one line,
    for everything that is not a topology.
    """
    text = str(name_or_path)
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return topology_of(int(text))
    if text == "lpx":
        return lpx_rack()
    chain = re.fullmatch(r"chain-([0-9]{1,9})", text, re.ASCII)
    if chain is not None:
        return chain_of(int(chain[1]))
    where = f"topology {_shown(text)}"
    path = Path(name_or_path)
    try:
        if not path.is_file():
            raise FabricError(
                f"{where}: no such file; use a number of chips, chain-N, lpx, or a file"
            )
        if path.suffix not in (".toml", ".json"):
            raise FabricError(f"{where}: the name of a topology file ends in .toml or .json")
        if path.suffix == ".toml":
            return _custom(where, read_toml(path, MAX_FILE_BYTES))
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise FabricError(f"{where}: more than {MAX_FILE_BYTES} bytes; use a smaller file")
        table: object = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except FabricError:
        raise
    except TomlFileError as error:
        raise FabricError(f"{where}: {error}") from None
    except RecursionError:
        raise FabricError(f"{where}: nested too deeply; cables is a list of lists") from None
    except (OSError, ValueError) as error:
        reason = _clipped(" ".join(str(error).split()))
        raise FabricError(f"{where}: not a readable JSON: {reason}") from None
    return _custom(where, table)


def wired_topology(chips: int, cables: Sequence[Sequence[int]], name: str = "custom") -> Topology:
    """``chips`` chips joined by ``cables`` of (chip a, link of a, chip b, link of b) each.

    Links are 0..15.  Raises FabricError, one line, as for a topology file.
    """
    rows = [list(cable) for cable in cables]
    return _custom("topology", {"name": name, "chips": chips, "cables": rows})


def cable_faults(topology: Topology, spec: ChipSpec) -> list[str]:
    """What is wrong with ``topology.cables`` for chips of ``spec``; empty if nothing is.

    Chips and links out of range, cables from a chip to itself, links used twice, and chips with
    more cables than ``spec.wired_links``.
    """
    return _faults(topology.cables.astype(np.int64), topology.chips, spec)


def _faults(cables: Ints, chips: int, spec: ChipSpec) -> list[str]:
    """``cable_faults`` of int64 [n, 4]."""
    faults: list[str] = []
    ends, links = cables[:, 0::2], cables[:, 1::2]
    inside = ((ends >= 0) & (ends < chips)).all(1) & ((links >= 0) & (links < LINKS)).all(1)
    for i, e in zip(*np.nonzero((ends < 0) | (ends >= chips)), strict=True):
        faults.append(f"cable {i}: chip {ends[i, e]} does not exist; use 0..{chips - 1}")
    for i, e in zip(*np.nonzero((links < 0) | (links >= spec.links)), strict=True):
        faults.append(f"cable {i}: link {links[i, e]} does not exist; use 0..{spec.links - 1}")
    for i in np.flatnonzero(ends[:, 0] == ends[:, 1]):
        faults.append(f"cable {i}: chip {ends[i, 0]} is at both ends; join two chips")
    ports = (ends[inside] * LINKS + links[inside]).reshape(-1)
    taken, times = np.unique(ports, return_counts=True)
    for port, n in zip(taken[times > 1], times[times > 1], strict=True):
        chip, link = divmod(int(port), LINKS)
        faults.append(f"chip {chip} link {link}: {n} cable ends; a link takes one, use another")
    used = np.bincount(ends[inside].reshape(-1), minlength=1)
    for crowded in np.flatnonzero(used > spec.wired_links):
        faults.append(
            f"chip {crowded}: {used[crowded]} cables; {spec.name} has {spec.wired_links} links "
            f"wired, take {used[crowded] - spec.wired_links} away"
        )
    return faults


def _custom(where: str, table: object) -> Topology:
    """The topology of a parsed file."""
    if not isinstance(table, dict):
        raise FabricError(f"{where}: not a table; give chips and cables")
    for field in table:
        if field not in _FIELDS:
            raise FabricError(f"{where}: {_shown(field)} is no field; use {', '.join(_FIELDS)}")
    chips, rows, name = table.get("chips"), table.get("cables"), table.get("name", "custom")
    if type(chips) is not int or not 1 <= chips <= MAX_CHIPS:
        raise FabricError(
            f"{where}: chips is {_shown(chips)}; use a whole number from 1 to {MAX_CHIPS}"
        )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise FabricError(f"{where}: name is {_shown(name)}; use 1 to 64 of A-Z a-z 0-9 . _ -")
    if name in _BUILT_IN:
        raise FabricError(f"{where}: name {name!r} belongs to a built-in wiring; use another")
    if not isinstance(rows, list):
        raise FabricError(f"{where}: cables is {_shown(rows)}; use a list of four integers each")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 4 or any(type(x) is not int for x in row):
            raise FabricError(
                f"{where}: cable {i} is {_shown(row)}; use [chip a, link of a, chip b, link of b]"
            )
    try:
        cables = np.array(rows, np.int64).reshape(-1, 4)
    except OverflowError:
        raise FabricError(
            f"{where}: cables: a number beyond 64 bits; use chips and links"
        ) from None
    faults = _faults(cables, chips, PRESETS["groq-lpu-1"])
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise FabricError(f"{where}: {faults[0]}{more}")
    peer, peer_link = _unwired(chips)
    a, link_a, b, link_b = cables.T
    peer[a, link_a], peer[b, link_b] = b, a
    peer_link[a, link_a], peer_link[b, link_b] = link_b, link_a
    return _topology(name, 1, chips, peer, peer_link)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused if a field comes twice (as TOML does)."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a field is given twice")
    return table


def _clipped(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _shown(value: object) -> str:
    """A value in a message: one line, ASCII, short."""
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "a number beyond 64 bits"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 8 else _clipped(_row(value))
    return f"a table of {len(value)}" if isinstance(value, dict) else _clipped(ascii(value))


def _row(values: list[object]) -> str:
    nested = ["[...]" if isinstance(v, (list, dict)) else _shown(v) for v in values]
    return "[" + ", ".join(nested) + "]"


def _unwired(chips: int) -> tuple[Ints, Ints]:
    """peer and peer_link, int64 [chips, 16], without cables."""
    return np.full((chips, LINKS), -1, np.int64), np.full((chips, LINKS), -1, np.int64)


def _nodes(nodes: int, size: int) -> tuple[Ints, Ints]:
    """peer and peer_link of nodes that have their local cables only."""
    chips = np.arange(nodes * size)
    peer, peer_link = _unwired(nodes * size)
    for k in range(1, size):
        peer[:, link_to(k)] = chips // size * size + (chips % size ^ k)
        peer_link[:, link_to(k)] = link_to(k)
    return peer, peer_link


def _turn(
    peer: Ints, peer_link: Ints, units: int, size: int, port_chip: Ints, port_link: Ints
) -> None:
    """Wire every ``units`` units of ``size`` chips all to all, each as every other: rotational.

    Cable j of m from unit U to unit U + d leaves on port (d - 1) * m + j, the other end sees the
    offset units - d.  Port p is link port_link[p] of chip port_chip[p] of the unit.
    """
    m = port_chip.size // (units - 1)
    offset = np.repeat(np.arange(1, units), m)
    j = np.tile(np.arange(m), units - 1)
    near, far = (offset - 1) * m + j, (units - offset - 1) * m + j
    group = np.arange(peer.shape[0] // (units * size))[:, None, None] * units
    unit = np.arange(units)[None, :, None]
    chip = (group + unit) * size + port_chip[near]
    peer[chip, port_link[near]] = (group + (unit + offset) % units) * size + port_chip[far]
    peer_link[chip, port_link[near]] = port_link[far]


def _all_to_all(name: str, nodes: int, chip_spec: str) -> Topology:
    """Nodes of eight: port p of 32 is link p % 4 of GLOBAL_LINKS of chip p // 4."""
    peer, peer_link = _nodes(nodes, NODE)
    port = np.arange(4 * NODE)
    _turn(peer, peer_link, nodes, NODE, port // 4, np.array(GLOBAL_LINKS)[port % 4])
    return _topology(name, NODE, nodes, peer, peer_link, chip_spec)


def rack_ports() -> Ints:
    """Rack port of every rack cable index: int64 [144], a permutation of 0..143 (assumed).

    Index i is the port of rank i when the ports q are ordered by 5**q modulo 193 (5 generates all
    192 residues).  This order mixes offsets over nodes and chips well enough that the 10,440 chips
    are 6 hops apart at most; in the order 0, 1, 2, ... they would be 7.
    """
    return np.argsort(np.array([pow(5, q, 193) for q in range(2 * NODE * RACK_NODES)]))


def _dragonfly(racks: int) -> Topology:
    """Racks of nine nodes: links 3 and 4 stay in the rack, links 12 and 13 leave it."""
    peer, peer_link = _nodes(racks * RACK_NODES, NODE)
    inner, outer = np.arange(2 * NODE), rack_ports()
    _turn(peer, peer_link, RACK_NODES, NODE, inner % 8, np.array(_INNER_LINKS)[inner // 8])
    size = NODE * RACK_NODES
    _turn(peer, peer_link, racks, size, outer // 2, np.array(_OUTER_LINKS)[outer % 2])
    return _topology("dragonfly", NODE, RACK_NODES, peer, peer_link)


def _topology(
    name: str,
    chips_per_node: int,
    nodes_per_rack: int,
    peer: Ints,
    peer_link: Ints,
    chip_spec: str = "groq-lpu-1",
) -> Topology:
    """Narrow the arrays, list the cables, make everything read-only."""
    a, link_a = np.nonzero(peer > np.arange(peer.shape[0])[:, None])
    b, link_b = peer[a, link_a], peer_link[a, link_a]
    order = np.lexsort((link_a, b, a))
    cables = np.stack((a, link_a, b, link_b), axis=1)[order].astype(np.int32)
    narrow, narrow_link = peer.astype(np.int32), peer_link.astype(np.int8)
    for array in (cables, narrow, narrow_link):
        array.flags.writeable = False
    return Topology(
        name, peer.shape[0], chips_per_node, nodes_per_rack, cables, narrow, narrow_link, chip_spec
    )
