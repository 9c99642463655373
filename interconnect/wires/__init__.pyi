from .check import WireFinding, check_wires, count_conflicts
from .frames import (
    LINK_NUMBERS,
    PLANES_PER_WORD,
    LinkFramesError,
    Quad,
    collisions,
    inward_stream,
    link_frames,
    outward_stream,
    phases,
    read_lead,
    write_delay,
)
from .simulation import FabricRun, simulate
from .slots import Ints, Links, WireSchedule, concatenate, first_frames, schedule_messages
from .spreading import spread

__all__ = [
    "LINK_NUMBERS",
    "PLANES_PER_WORD",
    "FabricRun",
    "Ints",
    "LinkFramesError",
    "Links",
    "Quad",
    "WireFinding",
    "WireSchedule",
    "check_wires",
    "collisions",
    "concatenate",
    "count_conflicts",
    "first_frames",
    "inward_stream",
    "link_frames",
    "outward_stream",
    "phases",
    "read_lead",
    "schedule_messages",
    "simulate",
    "spread",
    "write_delay",
]
