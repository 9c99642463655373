from .builder import Alu, CompileError, Operand, Pass, Repeat, ScatterWindow, Self, Stream, offsets
from .relocation import Gangs, program_of, relocate, rename_tags, shifted, translate_gangs
from .reservation import Place, Schedule, Symbol

__all__ = [
    "Alu",
    "CompileError",
    "Gangs",
    "Operand",
    "Pass",
    "Place",
    "Repeat",
    "ScatterWindow",
    "Schedule",
    "Self",
    "Stream",
    "Symbol",
    "offsets",
    "program_of",
    "relocate",
    "rename_tags",
    "shifted",
    "translate_gangs",
]
