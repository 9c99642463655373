from .assembly import Assembly, assemble, read_assembly
from .assembly_error import AssemblyError
from .data_text import data_lines
from .disassembly import disassemble, write_instructions
from .text_columns import Rendered, TextColumns

__all__ = [
    "Assembly",
    "AssemblyError",
    "Rendered",
    "TextColumns",
    "assemble",
    "data_lines",
    "disassemble",
    "read_assembly",
    "write_instructions",
]
