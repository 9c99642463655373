from .clock import unexpected_retirements
from .conclusion import conclude
from .group import ChipGroup, GroupPlan, GroupResult, LaunchPart, layout_of
from .leftovers import find_leftovers
from .mapping import MappingError, SharedMapping
from .ray_session import JOB_VARIABLE, open_ray
from .session import Placement, chip_actors, chips_per_actor
from .snapshots import SNAPSHOT_LAUNCHES, snapshot_directory
from .supervision import Recovery, Supervisor

__all__ = [
    "JOB_VARIABLE",
    "SNAPSHOT_LAUNCHES",
    "ChipGroup",
    "GroupPlan",
    "GroupResult",
    "LaunchPart",
    "MappingError",
    "Placement",
    "Recovery",
    "SharedMapping",
    "Supervisor",
    "chip_actors",
    "chips_per_actor",
    "conclude",
    "find_leftovers",
    "layout_of",
    "open_ray",
    "snapshot_directory",
    "unexpected_retirements",
]
