"""Scores, exponentials and the weighted sum of values of the heads on one cached tile."""

from __future__ import annotations

from collections.abc import Sequence

from chip.isa import LANES_PER_SUPERLANE
from chip.scheduling import Schedule
from chip.spec import ChipSpec
from programs.kernels.on_planes.append import (
    SPREAD_WORDS,
    spread_values,
    stage_value,
    turn_values,
)
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
    early: int | None = None,
) -> int:
    """Outputs of the groups' query tiles, ``places.outputs.at(tile number)``; when readable.

    groups: each with its cached tile, all in one run, up to eight heads together.  context:
    positions of the bucket.  ready: when rotated queries, keys and values are readable.  cap: what
    scores are capped at, 0: at nothing.  new_values: of the tiles, readable when ``ready``
    says that values are: they are appended in their order where scores leave room.  Their tiles are
    equally wide.  early: when the first of them are spread, where ``spread_first`` did that.  Of a
    group of several tokens masks and words of the first one are named.
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
    batches = _batches(new_values)
    spread = early or 0
    if batches and early is None:
        spread = _spread(schedule, spec, batches[0], values, places)
    queries = copy_queries(schedule, spec, whole, ready[0], places)
    known = score(schedule, spec, runs, blocks, (queries, ready[1]), places, cap)
    done: dict[CachedTile, int] = {}
    for batch in batches:
        if batch is not batches[0]:
            spread = _spread(schedule, spec, batch, values, places)
        staged: list[tuple[NewValue, int]] = []
        for number, new in enumerate(batch):
            # a tile's values follow each other, as those beside each other are written together
            if new.tile in [before.tile for before, _ in staged]:
                _turn_all(schedule, spec, staged, done)
            free = max(spread, done.get(new.tile, 0))
            staged.append((new, stage_value(schedule, spec, number, free, new.tile, new.maps)))
        _turn_all(schedule, spec, staged, done)
        values = max(values, *done.values())
    return weigh(schedule, spec, whole, runs, blocks, (known, values), places)


def _turn_all(
    schedule: Schedule,
    spec: ChipSpec,
    staged: list[tuple[NewValue, int]],
    done: dict[CachedTile, int],
) -> None:
    """Turn what is staged, each from when it is readable on; into ``done`` when each tile is."""
    for new, ready in staged:
        done[new.tile] = turn_values(schedule, spec, ready, new.tile, new.maps)
    staged.clear()


def spread_first(
    schedule: Schedule,
    spec: ChipSpec,
    new_values: Sequence[NewValue],
    ready: int,
    places: PlanePlaces,
) -> int:
    """Spread what ``attend_tiles`` would spread first of the same ``new_values``; when readable."""
    return _spread(schedule, spec, _batches(new_values)[0], ready, places)


def _batches(new_values: Sequence[NewValue]) -> list[Sequence[NewValue]]:
    """As many at a time as there is room to spread."""
    if not new_values:
        return []
    each = min(HEADS, SPREAD_WORDS * LANES_PER_SUPERLANE // new_values[0].tile.columns)
    return [new_values[first : first + each] for first in range(0, len(new_values), each)]


def _spread(
    schedule: Schedule, spec: ChipSpec, batch: Sequence[NewValue], ready: int, places: PlanePlaces
) -> int:
    """See ``spread_values``."""
    words = tuple(new.value for new in batch)
    return spread_values(schedule, spec, words, ready, batch[0].tile.columns, places)
