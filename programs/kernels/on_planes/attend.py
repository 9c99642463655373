"""Scores, exponentials and the weighted sum of values of the heads on one cached tile."""

from __future__ import annotations

from collections.abc import Sequence

from chip.isa import LANES_PER_SUPERLANE
from chip.scheduling import Schedule
from chip.spec import ChipSpec
from programs.kernels.on_planes.append import SPREAD_WORDS, spread_values, stage_value
from programs.kernels.on_planes.places import (
    BLOCK,
    HEADS,
    CachedTile,
    HeadRun,
    NewValue,
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
    new_values: Sequence[NewValue] = (),
) -> int:
    """Outputs of the groups' query tiles, ``places.outputs.at(tile number)``; when readable.

    groups: each with its cached tile, all in one run, up to eight heads together.  context:
    positions of the bucket.  ready: when rotated queries, keys and values are readable.  cap: what
    scores are capped at, 0: at nothing.  new_values: of the tiles, readable when ``ready``
    says that values are: they are appended in their order where scores leave room.  Their tiles are
    equally wide.  Of a group of several tokens masks and words of the first one are named.
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
        runs.append(HeadRun(tile, first, sum(group.heads), group.tokens))
    assert len({new.tile.columns for new in new_values}) < 2
    values = ready[2]
    each = min(HEADS, SPREAD_WORDS * LANES_PER_SUPERLANE // groups[0][1].columns)
    batches = [new_values[first : first + each] for first in range(0, len(new_values), each)]
    spread = _spread(schedule, spec, batches[0], values, places) if batches else 0
    queries = copy_queries(schedule, spec, whole, ready[0], places)
    known = score(schedule, spec, runs, blocks, (queries, ready[1]), places, cap)
    done: dict[CachedTile, int] = {}
    for batch in batches:
        if batch is not batches[0]:
            spread = _spread(schedule, spec, batch, values, places)
        for number, new in enumerate(batch):
            # a tile's values follow each other, as those beside each other are written together
            free = max(spread, done.get(new.tile, 0))
            done[new.tile] = stage_value(schedule, spec, number, free, new.tile, new.maps)
            values = max(values, done[new.tile])
    return weigh(schedule, spec, whole, runs, blocks, (known, values), places)


def _spread(
    schedule: Schedule, spec: ChipSpec, batch: Sequence[NewValue], ready: int, places: PlanePlaces
) -> int:
    """See ``spread_values``."""
    words = tuple(new.value for new in batch)
    return spread_values(schedule, spec, words, ready, batch[0].tile.columns, places)
