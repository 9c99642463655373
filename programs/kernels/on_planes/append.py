"""New keys and values to where the planes read them."""

from __future__ import annotations

from chip.scheduling import Place, Schedule
from chip.spec import ChipSpec
from programs.kernels.on_planes.places import CachedTile, PlanePlaces


def append_key(
    schedule: Schedule,
    spec: ChipSpec,
    key: Place,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
) -> int:
    """The fp16 word ``key`` (near pair in the east) to its column; returns when it is readable."""
    raise NotImplementedError


def append_value(
    schedule: Schedule,
    spec: ChipSpec,
    value: Place,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
) -> int:
    """The fp32 word ``value`` (east quad) to its lane; returns when it is readable."""
    raise NotImplementedError
