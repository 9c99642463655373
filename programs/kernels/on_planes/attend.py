"""Scores, exponentials and the weighted sum of values of the heads on one cached tile."""

from __future__ import annotations

from chip.scheduling import Schedule
from chip.spec import ChipSpec
from programs.kernels.on_planes.places import (
    BLOCK,
    CachedTile,
    PlanePlaces,
    QueryGroup,
    side_blocks,
)
from programs.kernels.on_planes.scores import copy_queries, score
from programs.kernels.on_planes.values import weigh


def attend_on_planes(
    schedule: Schedule,
    spec: ChipSpec,
    group: QueryGroup,
    context: int,
    ready: tuple[int, int, int],
    tile: CachedTile,
    places: PlanePlaces,
    cap: float = 0.0,
) -> int:
    """Outputs of the group's query tiles, ``places.outputs.at(tile number)``; when readable.

    context: positions of the bucket.  ready: when rotated queries, keys and values are readable.
    cap: what scores are capped at, 0: at nothing.
    """
    blocks = side_blocks(-(-context // BLOCK))
    queries = copy_queries(schedule, spec, group, ready[0], places)
    known = score(schedule, spec, group, blocks, (queries, ready[1]), tile, places, cap)
    return weigh(schedule, spec, group, blocks, (known, ready[2]), tile, places)
