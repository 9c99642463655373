from .blocks import BLOCK_DTYPE, BlockTable, Program, expand, gang_skew, new_blocks
from .columns import (
    DRIVE_POSITION,
    SAMPLE_POSITION,
    Bools,
    Columns,
    Ints,
    expand_columns,
)
from .limits import (
    COLUMN_RANGES,
    MAX_BLOCKS,
    MAX_CYCLES,
    MAX_GANG_MEMBERS,
    MAX_GANGS,
    MAX_MAPS,
    ProgramLimitError,
    expanded_elements,
    validate_program,
)

__all__ = [
    "BLOCK_DTYPE",
    "COLUMN_RANGES",
    "DRIVE_POSITION",
    "MAX_BLOCKS",
    "MAX_CYCLES",
    "MAX_GANGS",
    "MAX_GANG_MEMBERS",
    "MAX_MAPS",
    "SAMPLE_POSITION",
    "BlockTable",
    "Bools",
    "Columns",
    "Ints",
    "Program",
    "ProgramLimitError",
    "expand",
    "expand_columns",
    "expanded_elements",
    "gang_skew",
    "new_blocks",
    "validate_program",
]
