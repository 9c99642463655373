from .builder import Alu, CompileError, Operand, Pass, Repeat, Self, Stream, offsets
from .reservation import Place, Schedule, Symbol, program_of, relocate

__all__ = [
    "Alu",
    "CompileError",
    "Operand",
    "Pass",
    "Place",
    "Repeat",
    "Schedule",
    "Self",
    "Stream",
    "Symbol",
    "offsets",
    "program_of",
    "relocate",
]
