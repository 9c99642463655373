from .clock import unexpected_retirements
from .conclusion import conclude
from .group import ChipGroup, GroupPlan, GroupResult, LaunchPart, layout_of
from .leftovers import find_leftovers
from .mapping import MappingError, SharedMapping
from .one_file import carrying, open_carried
from .ray_session import JOB_VARIABLE, open_ray
from .session import Placement, chip_actors, chips_per_actor, load_kernels
from .snapshots import SNAPSHOT_LAUNCHES, snapshot_directory
from .supervision import Recovery, Supervisor, actors_text
from .waiting import cores

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
    "actors_text",
    "carrying",
    "chip_actors",
    "chips_per_actor",
    "conclude",
    "cores",
    "find_leftovers",
    "layout_of",
    "load_kernels",
    "open_carried",
    "open_ray",
    "snapshot_directory",
    "unexpected_retirements",
]
