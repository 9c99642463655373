from .builder import Alu, CompileError, Operand, Pass, Repeat, ScatterWindow, Self, Stream, offsets
from .places import ALL_BANKS, Place, Symbol, banks_of
from .relocation import Gangs, program_of, relocate, rename_tags, shifted, translate_gangs
from .reservation import Collision, PlacedPass, Schedule, place_together

__all__ = [
    "ALL_BANKS",
    "Alu",
    "Collision",
    "CompileError",
    "Gangs",
    "Operand",
    "Pass",
    "Place",
    "PlacedPass",
    "Repeat",
    "ScatterWindow",
    "Schedule",
    "Self",
    "Stream",
    "Symbol",
    "banks_of",
    "offsets",
    "place_together",
    "program_of",
    "relocate",
    "rename_tags",
    "shifted",
    "translate_gangs",
]
