"""Scores, exponentials and the weighted sum of values of the heads on one cached tile."""

from __future__ import annotations

from chip.scheduling import Place, Schedule
from chip.spec import ChipSpec
from programs.kernels.on_planes.append import spread_values, stage_value
from programs.kernels.on_planes.places import (
    BLOCK,
    CachedTile,
    HeadRun,
    PlanePlaces,
    QueryGroup,
    side_blocks,
)
from programs.kernels.on_planes.scores import copy_queries, score
from programs.kernels.on_planes.values import weigh


def attend_tiles(
    schedule: Schedule,
    spec: ChipSpec,
    groups: tuple[tuple[QueryGroup, CachedTile], ...],
    context: int,
    ready: tuple[int, int, int],
    places: PlanePlaces,
    cap: float = 0.0,
    new_values: tuple[Place | None, ...] = (),
) -> int:
    """Outputs of the groups' query tiles, ``places.outputs.at(tile number)``; when readable.

    groups: each with its cached tile, all in one run, up to eight heads together.  context:
    positions of the bucket.  ready: when rotated queries, keys and values are readable.  cap: what
    scores are capped at, 0: at nothing.  new_values: the token's own value of each group's tile
    (a fp32 word in the east; None: it is there already), readable when ``ready`` says that values
    are: they are appended where scores leave room.  The tiles of new values are equally wide.
    """
    blocks = side_blocks(-(-context // BLOCK))
    whole = QueryGroup(
        tuple(tile for group, _ in groups for tile in group.tiles),
        tuple(heads for group, _ in groups for heads in group.heads),
        groups[0][0].head_lanes,
    )
    runs: list[HeadRun] = []
    for group, tile in groups:
        first = runs[-1].first + runs[-1].heads if runs else 0
        runs.append(HeadRun(tile, first, sum(group.heads)))
    own = new_values or (None,) * len(groups)
    new = [(value, tile) for value, (_, tile) in zip(own, groups, strict=True) if value]
    assert len({tile.columns for _, tile in new}) < 2
    values = ready[2]
    if new:
        words = tuple(value for value, _ in new)
        spread = spread_values(schedule, spec, words, values, new[0][1].columns, places)
    queries = copy_queries(schedule, spec, whole, ready[0], places)
    known = score(schedule, spec, runs, blocks, (queries, ready[1]), places, cap)
    for number, (_, tile) in enumerate(new):
        values = max(values, stage_value(schedule, spec, number, spread, tile, places))
    return weigh(schedule, spec, whole, runs, blocks, (known, values), places)
