"""The link between LPUs and GPUs: what a transfer takes, and who waits for whom.

``WorldLink`` is one direction of a link.  ``LinkLedger`` is its use in virtual time: transfers go
one after another in the order of their sending, and every byte is booked under what it carries.
Each preset names its sources.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from cluster.errors import InputError
from cluster.gpu.spec import ASSUMED, CALIBRATED, PUBLISHED, check_number, load_table

#: What a link carries, by kind.
KINDS = ("tokens", "logits", "kv", "json", "activations")
TOKEN_BYTES = 4
"""A token id on any link."""


@dataclass(frozen=True)
class WorldLink:
    """One direction of a link: latency_s + bytes / (bytes_per_s x achieved_ratio).

    bytes_per_s: the raw rate; achieved_ratio: what programs get of it.
    """

    name: str = "PCIe 5.0 x16"
    latency_s: float = 10e-6
    bytes_per_s: float = 64e9
    achieved_ratio: float = 0.75

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("link.name is empty: give the link a name")
        check_number("link.latency_s", self.latency_s, 0)
        check_number("link.bytes_per_s", self.bytes_per_s)
        check_number("link.achieved_ratio", self.achieved_ratio)
        if self.achieved_ratio > 1:
            raise InputError(f"link.achieved_ratio is {self.achieved_ratio}: it is at most 1")

    def occupied_seconds(self, nbytes: int) -> float:
        """Seconds the link is busy with ``nbytes`` bytes and can take no others."""
        if nbytes < 0:
            raise InputError(f"a transfer of {nbytes} bytes: it must be at least 0")
        return nbytes / (self.bytes_per_s * self.achieved_ratio)

    def seconds(self, nbytes: int) -> float:
        """Seconds from sending ``nbytes`` bytes on an idle link to their arrival."""
        return self.latency_s + self.occupied_seconds(nbytes)


_PCIE_LATENCY = (PUBLISHED, "10 us: GroqFlow cost model, and aiconfigurator's point to point")
_PCIE_RATIO = (CALIBRATED, "24 GB/s of Gen4 x16's 32 in GroqFlow's cost model; other Gens alike")
_NET_LATENCY = (CALIBRATED, "aiconfigurator: 10 us point to point + 5 us inter-rack")
_NET_RATIO = (ASSUMED, "framing and protocol leave 0.9")

#: (link, sources by field) of every preset.
_LINKS: dict[str, tuple[WorldLink, dict[str, tuple[str, str]]]] = {
    "pcie5-x16": (
        WorldLink(),
        {
            "latency_s": _PCIE_LATENCY,
            "bytes_per_s": (PUBLISHED, "Gen5 x16, one direction"),
            "achieved_ratio": _PCIE_RATIO,
        },
    ),
    "pcie6-x16": (
        WorldLink("PCIe 6.0 x16", bytes_per_s=128e9),
        {
            "latency_s": _PCIE_LATENCY,
            "bytes_per_s": (PUBLISHED, "Gen6 x16, one direction"),
            "achieved_ratio": _PCIE_RATIO,
        },
    ),
    **{
        f"{gigabits}gbe": (
            WorldLink(f"{gigabits} Gb/s Ethernet", 15e-6, gigabits * 1e9 / 8, 0.9),
            {
                "latency_s": _NET_LATENCY,
                "bytes_per_s": (PUBLISHED, "line rate"),
                "achieved_ratio": _NET_RATIO,
            },
        )
        for gigabits in (100, 400, 800)
    },
    "nvlink-c2c": (
        WorldLink("NVLink-C2C", 1e-6, 450e9, 0.8),
        {
            "latency_s": (ASSUMED, "as a step of NVLink"),
            "bytes_per_s": (PUBLISHED, "aiconfigurator: GB200's C2C, one direction"),
            "achieved_ratio": (ASSUMED, "as NVLink"),
        },
    ),
}

LINK_PRESETS: dict[str, WorldLink] = {name: link for name, (link, _) in _LINKS.items()}
DEFAULT_PRESET = "pcie5-x16"


def field_source(preset: str, name: str) -> tuple[str, str]:
    """Where a preset's number comes from: (published, calibrated or assumed; a note)."""
    if preset not in _LINKS:
        raise InputError(f"link {preset!r} is no preset; known: {', '.join(_LINKS)}")
    if name not in [f.name for f in fields(WorldLink)]:
        raise InputError(
            f"link.{name} is no field; known: {', '.join(f.name for f in fields(WorldLink))}"
        )
    return _LINKS[preset][1].get(name, (PUBLISHED, "its common name"))


def load_link(source: str | Path) -> WorldLink:
    """A preset by name or a TOML file whose ``[link]`` table overrides ``base``.

    ``base`` is pcie5-x16 by default.  Raises InputError with one line.
    """
    return load_table(source, "link", LINK_PRESETS, DEFAULT_PRESET)


@dataclass
class LinkLedger:
    """One direction of a link in virtual time, first come, first served.

    bytes_by_kind, transfers: booked when sent.  busy_s: seconds the link carried bytes.  waited_s:
    seconds all transfers together waited for earlier ones.  The other direction is another ledger.
    """

    link: WorldLink
    bytes_by_kind: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    transfers: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    free_s: float = 0.0
    """When the last byte sent so far has left."""
    _last_s: float = 0.0

    def send(self, kind: str, nbytes: int, at_s: float) -> float:
        """Send ``nbytes`` bytes at ``at_s``; returns when the last one has arrived, in seconds.

        arrival = max(at, free) + bytes / rate + latency, where ``free`` is when the previous
        transfer's last byte left.  Sends must come in order of time: an earlier ``at_s`` than the
        last one's raises ValueError, as does a kind that is none of ``KINDS``.
        """
        if kind not in self.bytes_by_kind:
            raise ValueError(f"transfer kind {kind!r}: known are {', '.join(KINDS)}")
        if not at_s >= self._last_s:
            raise ValueError(f"a send at {at_s} s after one at {self._last_s} s: sort them by time")
        occupied = self.link.occupied_seconds(nbytes)
        start = max(at_s, self.free_s)
        self._last_s = at_s
        self.waited_s += start - at_s
        self.busy_s += occupied
        self.free_s = start + occupied
        self.transfers += 1
        self.bytes_by_kind[kind] += nbytes
        return self.free_s + self.link.latency_s

    @property
    def total_bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes_by_kind.values())

    def utilisation(self, until_s: float) -> float:
        """Share of the time from 0 to ``until_s`` (> 0) that bytes were on the link."""
        return self.busy_s / until_s
