from .append import append_key, append_value
from .attend import attend_on_planes, attend_tiles
from .places import (
    BLOCK,
    CachedTile,
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
    "PlanePlaces",
    "QueryGroup",
    "append_key",
    "append_value",
    "attend_on_planes",
    "attend_tiles",
    "constant_words",
    "key_map",
    "lane_map_words",
    "offset_words",
    "recent_map",
    "value_map",
]
