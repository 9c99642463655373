"""Programs as text and as instruction words.

Assembler, disassembler, and the words of the instruction queues.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
