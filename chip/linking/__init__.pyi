from .linker import LinkedProgram, describe, link
from .timing import TimingPart, join, timing_part, touched_words

__all__ = [
    "LinkedProgram",
    "TimingPart",
    "describe",
    "join",
    "link",
    "timing_part",
    "touched_words",
]
