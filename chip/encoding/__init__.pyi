from .assembly import Assembly, AssemblyError, assemble, read_assembly
from .disassembly import disassemble, write_instructions
from .text_columns import Rendered, TextColumns

__all__ = [
    "Assembly",
    "AssemblyError",
    "Rendered",
    "TextColumns",
    "assemble",
    "disassemble",
    "read_assembly",
    "write_instructions",
]
