"""``faults.toml``: which faults a modelled machine has, and when.  Read, checked, nothing more.

seed = 7                      # of everything drawn

[links]
bit_error_rate = 1e-9         # of every bit of every packet
spare_after = 3               # failures of one cable in a row that bring in the spare
[[links.cable]]               # a cable worse than the others
cable = 3                     # its number in the artifact
bit_error_rate = 1e-3
from_launch = 2

[sram]
bit_error_rate = 1e-12        # of a bit of a stored word, per launch
[[sram.upset]]                # one that is scheduled
chip = 0
launch = 4
bits = 2

[clocks]
ppm = 50.0                    # every oscillator is off by up to so much
deskew_interval_cycles = 0    # 0: only at the start of a launch
budget_cycles = 4             # ends of a cable may drift apart so far

[spares]
nodes = 1
[[dead_node]]
node = 0
launch = 5
cycle = 4000
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from chip.errors import LpuError
from chip.toml_files import TomlFileError, read_toml

MAX_ENTRIES = 10_000
_BIG = (1 << 62) - 1
T = TypeVar("T")


class FaultPlanError(LpuError, ValueError):
    """A fault plan that cannot be: one line, what, where and what would mend it."""


@dataclass(frozen=True)
class CableFault:
    """Cable number ``cable`` has ``bit_error_rate`` from launch ``from_launch`` on."""

    cable: int
    bit_error_rate: float
    from_launch: int = 0


@dataclass(frozen=True)
class Upset:
    """``bits`` (1 or 2) bits of one stored word of ``chip`` turn over before ``launch``."""

    chip: int
    launch: int
    bits: int = 1


@dataclass(frozen=True)
class DeadNode:
    """Node ``node`` of the run dies at ``cycle`` of ``launch``."""

    node: int
    launch: int = 0
    cycle: int = 0


@dataclass(frozen=True)
class FaultPlan:
    """Everything a fault file says; without one, nothing happens.

    link_bit_error_rate, sram_bit_error_rate: per bit and packet, per bit and launch.  spare_after:
    failures of a cable in a row that count as a broken one.  ppm: 0 for perfect clocks.  redraws:
    how often a run began again on other nodes, with other errors of links and SRAM (not in a file).
    """

    seed: int = 0
    link_bit_error_rate: float = 0.0
    spare_after: int = 3
    cables: tuple[CableFault, ...] = ()
    sram_bit_error_rate: float = 0.0
    upsets: tuple[Upset, ...] = ()
    ppm: float = 0.0
    deskew_interval_cycles: int = 0
    budget_cycles: int = 4
    spare_nodes: int = 1
    dead_nodes: tuple[DeadNode, ...] = ()
    redraws: int = 0


def load_fault_plan(path: str | Path) -> FaultPlan:
    """The plan in a TOML file; raises FaultPlanError, one line, for everything that is none."""
    where = f"faults {str(path)[:80]!a}"
    try:
        return _plan(read_toml(Path(path)))
    except (TomlFileError, FaultPlanError) as error:
        raise FaultPlanError(f"{where}: {error}") from None


def _plan(table: dict[str, Any]) -> FaultPlan:
    links = _table(table, "links", ("bit_error_rate", "spare_after", "cable"))
    sram = _table(table, "sram", ("bit_error_rate", "upset"))
    clocks = _table(table, "clocks", ("ppm", "deskew_interval_cycles", "budget_cycles"))
    spares = _table(table, "spares", ("nodes",))
    _known(table, "the file", ("seed", "links", "sram", "clocks", "spares", "dead_node"))
    return FaultPlan(
        seed=_whole(table, "seed", 0, 0, (1 << 55) - 1),
        link_bit_error_rate=_rate(links, "bit_error_rate", 0.0),
        spare_after=_whole(links, "spare_after", 3, 1, 1000),
        cables=_entries(links, "cable", CableFault, _cable),
        sram_bit_error_rate=_rate(sram, "bit_error_rate", 0.0),
        upsets=_entries(sram, "upset", Upset, _upset),
        ppm=_real(clocks, "ppm", 0.0, 0.0, 999.0),
        deskew_interval_cycles=_whole(clocks, "deskew_interval_cycles", 0, 0, 10**12),
        budget_cycles=_whole(clocks, "budget_cycles", 4, 0, 125),
        spare_nodes=_whole(spares, "nodes", 1, 0, 32),
        dead_nodes=_entries(table, "dead_node", DeadNode, _dead),
    )


def _cable(row: dict[str, Any]) -> CableFault:
    return CableFault(
        _whole(row, "cable", None, 0, 1 << 20),
        _rate(row, "bit_error_rate", None),
        _whole(row, "from_launch", 0, 0, 1 << 31),
    )


def _upset(row: dict[str, Any]) -> Upset:
    return Upset(
        _whole(row, "chip", None, 0, 16_383),
        _whole(row, "launch", None, 0, 1 << 31),
        _whole(row, "bits", 1, 1, 2),
    )


def _dead(row: dict[str, Any]) -> DeadNode:
    return DeadNode(
        _whole(row, "node", None, 0, 16_383),
        _whole(row, "launch", 0, 0, 1 << 31),
        _whole(row, "cycle", 0, 0, _BIG),
    )


def _known(table: dict[str, Any], what: str, names: tuple[str, ...]) -> None:
    for name in table:
        if name not in names:
            raise FaultPlanError(f"{what} has {name[:40]!a}; use {', '.join(names)}")


def _table(table: dict[str, Any], name: str, names: tuple[str, ...]) -> dict[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, dict):
        raise FaultPlanError(f"{name} is no table; write [{name}]")
    _known(value, f"[{name}]", names)
    return value


def _entries(
    table: dict[str, Any], name: str, kind: Any, read: Callable[[dict[str, Any]], T]
) -> tuple[T, ...]:
    rows = table.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise FaultPlanError(f"{name} is no list of tables; write [[{name}]]")
    if len(rows) > MAX_ENTRIES:
        raise FaultPlanError(f"{len(rows)} entries of {name}; use {MAX_ENTRIES} or fewer")
    for row in rows:
        _known(row, f"[[{name}]]", tuple(field.name for field in fields(kind)))
    return tuple(read(row) for row in rows)


def _shown(value: object) -> str:
    """A value in a message: short, on one line."""
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "a number beyond 64 bits"
    return ascii(value)[:40] if isinstance(value, (str, int, float)) else type(value).__name__


def _whole(table: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int:
    value = table.get(name, default)
    if type(value) is not int or not low <= value <= high:
        given = "missing" if value is None else _shown(value)
        raise FaultPlanError(f"{name} is {given}; use a whole number from {low} to {high}")
    return value


def _real(
    table: dict[str, Any], name: str, default: float | None, low: float, high: float
) -> float:
    value = table.get(name, default)
    if isinstance(value, (int, float)) and type(value) is not bool and low <= value <= high:
        return float(value)
    given = "missing" if value is None else _shown(value)
    raise FaultPlanError(f"{name} is {given}; use a number from {low:g} to {high:g}")


def _rate(table: dict[str, Any], name: str, default: float | None) -> float:
    return _real(table, name, default, 0.0, 0.5)
