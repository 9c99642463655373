from .append import append_key
from .attend import attend_tiles, spread_first
from .places import (
    BLOCK,
    CachedTile,
    NewValue,
    PlanePlaces,
    QueryGroup,
    constant_words,
    key_map,
    lane_map_words,
    offset_words,
    recent_map,
    value_map,
)

__all__ = [
    "BLOCK",
    "CachedTile",
    "NewValue",
    "PlanePlaces",
    "QueryGroup",
    "append_key",
    "attend_tiles",
    "constant_words",
    "key_map",
    "lane_map_words",
    "offset_words",
    "recent_map",
    "spread_first",
    "value_map",
]
