from .checker import Finding, check
from .encoding import AssemblyError, assemble, disassemble
from .engine import Chip, Rings, Status, run_chips
from .faults import LockstepViolation, ProgramFault
from .linking import LinkedProgram, link
from .program import Program, expand, new_blocks
from .reference import ReferenceChip
from .spec import ChipSpec, load_chip_spec

__all__ = [
    "AssemblyError",
    "Chip",
    "ChipSpec",
    "Finding",
    "LinkedProgram",
    "LockstepViolation",
    "Program",
    "ProgramFault",
    "ReferenceChip",
    "Rings",
    "Status",
    "assemble",
    "check",
    "disassemble",
    "expand",
    "link",
    "load_chip_spec",
    "new_blocks",
    "run_chips",
]
