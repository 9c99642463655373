"""What a chip is: sizes, latencies and rates, each with where it comes from.

``ChipSpec`` is immutable and validated at construction.  Its defaults are the first chip of
``PRESETS``.  Sources: *published* (ISCA 2020/2022 papers and first-party documents), *calibrated*
(chosen so that a published or measured sum comes out; the split is free), *assumed* (not public).
:func:`field_source` names the source of every field of every preset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from chip.errors import LpuError
from chip.isa import LINKS, MAX_WORDS_PER_BANK
from chip.toml_files import TomlFileError, read_toml

PUBLISHED, CALIBRATED, ASSUMED = "published", "calibrated", "assumed"


class SpecError(LpuError, ValueError):
    """A chip spec that cannot exist; the message says which field and what would mend it."""


#: Largest values of numbers in a spec, by the end of their names; the first match counts.
_LARGEST = {"_cycles": 2**20, "_rows": 2**16, "links": LINKS, "packet_bytes": 2**16, "": 2**40}


#: What the spacing of vectors on a link follows from.
_SPACED_BY = {"clock_hz", "link_bytes_per_s", "packet_bytes"}

#: Fields of which 0 says that nobody knows.
_MAY_BE_UNKNOWN = ("average_power_w",)


def largest_value(name: str) -> int:
    """The largest value that a number of a spec may have: beyond, sums would leave 64 bits."""
    return next(most for end, most in _LARGEST.items() if name.endswith(end))


def _f(default: Any, source: str, note: str) -> Any:
    return field(default=default, metadata={"source": source, "note": note})


@dataclass(frozen=True)
class ChipSpec:
    """One chip type.  Units are in the names; geometry (lanes, slices, streams) is the ISA's."""

    name: str = _f("groq-lpu-1", PUBLISHED, "the TSP of ISCA 2020")
    clock_hz: int = _f(900_000_000, PUBLISHED, "GroqFlow hard-codes 900 MHz")
    hemispheres: int = _f(2, PUBLISHED, "ISCA'20")
    slices_per_hemisphere: int = _f(44, PUBLISHED, "ISCA'20")
    banks_per_slice: int = _f(2, PUBLISHED, "ISCA'20")
    words_per_bank: int = _f(4096, PUBLISHED, "ISCA'20: 13-bit word address, two banks")
    lanes: int = _f(320, PUBLISHED, "ISCA'20: 20 superlanes x 16")
    superlane_skew_cycles: int = _f(20, PUBLISHED, "ISCA'20: N = 20, south to north")
    read_cycles: int = _f(1, CALIBRATED, "12 + 2*floor(s/4) round trip (working programs)")
    write_cycles: int = _f(2, CALIBRATED, "12 + 2*floor(s/4) round trip")
    gather_cycles: int = _f(1, CALIBRATED, "working programs: gather 1")
    alu_entry_cycles: int = _f(4, CALIBRATED, "working programs: ALU entry 4")
    alu_cycles: int = _f(3, CALIBRATED, "working programs: 3 per operation in a chain")
    mxm_install_cycles: int = _f(3, CALIBRATED, "working programs: install 3 beside streaming")
    mxm_reload_gap_cycles: int = _f(7, CALIBRATED, "reload interval 27 for 20 column groups")
    mxm_multiply_cycles: int = _f(13, CALIBRATED, "working programs: multiply 13")
    mxm_accumulate_cycles: int = _f(31, CALIBRATED, "so that MEM -> MXM -> VXM is 76")
    mxm_accumulator_rows: int = _f(320, ASSUMED, "addressable accumulator rows per plane")
    distribute_cycles: int = _f(2, CALIBRATED, "working programs: distributor 2")
    transpose_cycles: int = _f(4, CALIBRATED, "working programs: transposer 4")
    permute_cycles: int = _f(52, CALIBRATED, "permute 60 from read to readable")
    shift_cycles: int = _f(28, CALIBRATED, "160-lane shift 36 from read to readable")
    rotate_cycles: int = _f(4, ASSUMED, "as the transposer")
    notify_cycles: int = _f(35, PUBLISHED, "ISCA'20: chip-wide barrier")
    nop_max_cycles: int = _f(65_535, PUBLISHED, "ISCA'20: 16-bit repeat count")
    receive_cycles: int = _f(1, ASSUMED, "Receive issue to stream register at the edge")
    hop_cycles: int = _f(650, PUBLISHED, "ISCA'22: 722 ns pipelined hop at 900 MHz")
    link_wire_cycles: int = _f(217, PUBLISHED, "ISCA'22 table 2: mean HAC link latency")
    link_bytes_per_s: int = _f(12_500_000_000, PUBLISHED, "ISCA'22: 4 x 25 Gb/s lanes")
    packet_bytes: int = _f(328, PUBLISHED, "ISCA'22: 320 B payload in 328 B")
    send_spacing_cycles: int = _f(24, CALIBRATED, "2952/125 cycles rounded up to an issue slot")
    links: int = _f(16, PUBLISHED, "ISCA'20: 16 C2C links")
    wired_links: int = _f(11, PUBLISHED, "ISCA'22: 7 local + 4 global")
    pcie_latency_s: float = _f(10e-6, PUBLISHED, "GroqFlow cost model: 10 us")
    pcie_bytes_per_s: float = _f(24e9, PUBLISHED, "GroqFlow cost model: 24 GB/s")
    average_power_w: float = _f(185.0, PUBLISHED, "first-party card data: chip 185 W on average")
    reserved_slices_west: tuple[int, ...] = _f(
        (16, 20, 24, 28, 38), PUBLISHED, "SDK programs keep these for the system"
    )
    reserved_slices_east: tuple[int, ...] = _f(
        (16, 20, 24, 28), PUBLISHED, "SDK programs keep these for the system"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if value == 0 and f.name in _MAY_BE_UNKNOWN:
                    continue
                if value <= 0:
                    raise SpecError(f"chip.{f.name} is {value}: it must be positive")
                if not value < math.inf or value > (most := largest_value(f.name)):
                    given = value if isinstance(value, float) else "larger"
                    raise SpecError(f"chip.{f.name} is {given}: use {most} or less")
        for name in ("reserved_slices_west", "reserved_slices_east"):
            slices = getattr(self, name)
            if len(set(slices)) != len(slices) or not set(slices) <= set(range(44)):
                raise SpecError(f"chip.{name}: list different slices of 0..43")
        fixed = {"hemispheres": 2, "slices_per_hemisphere": 44, "banks_per_slice": 2, "lanes": 320}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise SpecError(
                    f"chip.{name} is {getattr(self, name)}: the instruction set fixes it at {value}"
                )
        if self.words_per_bank > MAX_WORDS_PER_BANK:
            raise SpecError(
                f"chip.words_per_bank is {self.words_per_bank}: a word address of 15 bits reaches "
                f"{MAX_WORDS_PER_BANK} words in each of two banks"
            )
        if self.send_to_receive_cycles <= self.link_wire_cycles:
            raise SpecError("chip.hop_cycles leaves no time beyond the wire: raise hop_cycles")

    @property
    def words_per_slice(self) -> int:
        """Words of a MEM slice; word w of it lies in bank ``w // words_per_bank``."""
        return self.banks_per_slice * self.words_per_bank

    @property
    def sram_bytes(self) -> int:
        """SRAM of one chip in bytes."""
        return self.hemispheres * self.slices_per_hemisphere * self.words_per_slice * self.lanes

    @property
    def send_to_receive_cycles(self) -> int:
        """Send issue to Receive issue: the hop less receive, ten hops to MEM43 and the write."""
        return self.hop_cycles - self.receive_cycles - 10 - self.write_cycles

    @property
    def cycles_per_vector(self) -> Fraction:
        """Exact link occupancy of one vector in cycles (2952/125 for the default spec)."""
        return Fraction(self.packet_bytes * self.clock_hz, self.link_bytes_per_s)


#: What is known of the other presets: field: (value, source, note); the rest is not public and as
#: in groq-lpu-1.
#:
#: groq-3-lp30.  Published: 500 MB and 150 TB/s of SRAM, 1.2 PF fp8 (rack totals use 1.23), vectors
#: of 320 B, 96 C2C lanes x 112 Gb/s, 350 ns SRAM to SRAM.  The clock follows from the peak if the
#: planes are lpu-1's.  At that clock 150 TB/s would be 312 words a cycle, but 88 slices with a
#: read and a write port move 176, so the model has 84.5 TB/s: the published rate needs more ports.
_OVERRIDES: dict[str, dict[str, tuple[Any, str, str]]] = {
    "groq-3-lp30": {
        "name": ("groq-3-lp30", PUBLISHED, "NVIDIA Groq 3 LPU, the LP30 of the LPX rack"),
        "clock_hz": (
            1_500_000_000,
            ASSUMED,
            "1.23 PF fp8 published / 2 x 409,600 MAC per cycle of lpu-1's MXM",
        ),
        "words_per_bank": (
            8_878,
            CALIBRATED,
            "500 MB published; 88 slices x 2 banks x 8,878 words x 320 B assumed",
        ),
        "lanes": (320, PUBLISHED, "the vector still has 320 B"),
        "alu_cycles": (
            3,
            ASSUMED,
            "as lpu-1; Hot Chips 2026 shows 2 from an ALU to its stream in one example",
        ),
        "hop_cycles": (
            514,
            ASSUMED,
            "350 ns SRAM to SRAM published = 525 cycles of the assumed clock, less 11 to the edge",
        ),
        "link_bytes_per_s": (
            84_000_000_000,
            CALIBRATED,
            "96 lanes x 112 Gb/s published; 6 lanes for each link assumed",
        ),
        "packet_bytes": (
            328,
            ASSUMED,
            "320 B published; header, body and tail control assumed as lpu-1",
        ),
        "send_spacing_cycles": (
            6,
            ASSUMED,
            "328 B at 84 GB/s are 5.86 cycles of the assumed clock, rounded up",
        ),
        "links": (16, ASSUMED, "the instruction set's; how the 96 lanes are grouped is not public"),
        "average_power_w": (0.0, ASSUMED, "not public: 0 says so, and no energy is estimated"),
        "wired_links": (
            16,
            ASSUMED,
            "95 of 96 lanes are wired in the rack as analysts describe it",
        ),
    }
}

PRESETS: dict[str, ChipSpec] = {"groq-lpu-1": ChipSpec()} | {
    preset: ChipSpec(**{name: value for name, (value, _, _) in overrides.items()})
    for preset, overrides in _OVERRIDES.items()
}


def field_source(preset: str, name: str) -> tuple[str, str]:
    """Where field ``name`` of a preset comes from: (published, calibrated or assumed; a note)."""
    if preset not in PRESETS:
        raise SpecError(f"chip spec {preset!r} is no preset; known: {', '.join(PRESETS)}")
    metadata = {f.name: f.metadata for f in fields(ChipSpec)}
    if name not in metadata:
        raise SpecError(f"chip.{name} is no field; known: {', '.join(metadata)}")
    if preset not in _OVERRIDES:
        return metadata[name]["source"], metadata[name]["note"]
    if name not in _OVERRIDES[preset]:
        return ASSUMED, "not public; as groq-lpu-1"
    _, source, note = _OVERRIDES[preset][name]
    return source, note


def changed_spec(base: ChipSpec, changes: dict[str, Any]) -> ChipSpec:
    """``base`` with some fields changed, and with those that follow from them.

    The spacing of vectors on a link follows from the clock, the link's rate and the packet, rounded
    up to a cycle, where one of these is changed and the spacing is not.  Raises SpecError.
    """
    spec = replace(base, **changes)
    if "send_spacing_cycles" in changes or not _SPACED_BY & changes.keys():
        return spec
    return replace(spec, send_spacing_cycles=math.ceil(spec.cycles_per_vector))


def load_chip_spec(source: str | Path) -> ChipSpec:
    """A preset by name or a TOML file whose ``[chip]`` table overrides ``base`` (default lpu-1).

    Raises SpecError with one line saying what, where and how to mend it.
    """
    text = str(source)
    if text in PRESETS:
        return PRESETS[text]
    path = Path(source)
    if not path.is_file():
        raise SpecError(f"chip spec {text!r}: no such preset ({', '.join(PRESETS)}) and no file")
    try:
        table = read_toml(path)
    except TomlFileError as error:
        raise SpecError(f"{path}: {error}") from None
    given = table.get("chip", {})
    if not isinstance(given, dict):
        raise SpecError(f"{path}: chip is no table; put the fields under [chip]")
    chip = dict(given)
    base_name = chip.pop("base", "groq-lpu-1")
    if not isinstance(base_name, str) or base_name not in PRESETS:
        raise SpecError(f"{path}: chip.base {base_name!r:.60} is not one of {', '.join(PRESETS)}")
    base = PRESETS[base_name]
    known = {f.name: f for f in fields(ChipSpec)}
    for name, value in chip.items():
        if name not in known:
            raise SpecError(f"{path}: chip.{name:.60} is no field; known: {', '.join(known)}")
        current = getattr(base, name)
        if type(value) is int and abs(value) >= 1 << 63:
            raise SpecError(f"{path}: chip.{name} does not fit 64 bits: give a smaller number")
        if isinstance(current, tuple) and isinstance(value, list):
            if any(type(item) is not int for item in value):
                raise SpecError(f"{path}: chip.{name} must be a list of whole numbers")
            chip[name] = tuple(value)
        elif type(current) is float and type(value) is int:
            chip[name] = float(value)
        elif type(value) is not type(current):
            raise SpecError(
                f"{path}: chip.{name} must be {type(current).__name__}, not {type(value).__name__}"
            )
    try:
        return changed_spec(base, chip)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
