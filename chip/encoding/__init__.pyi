from .assembly import AssemblyError, assemble
from .disassembly import disassemble, write_instructions
from .text_columns import Rendered, TextColumns

__all__ = [
    "AssemblyError",
    "Rendered",
    "TextColumns",
    "assemble",
    "disassemble",
    "write_instructions",
]
