from .images import (
    Image,
    fp32_rows,
    image_bytes,
    image_digest,
    put_fp32,
    put_rows,
    read_words,
)
from .placement import EAST_QUAD, KV_QUAD, MAP_PAIR, WEST_QUAD, SramPlacement, Strips, Symbols

__all__ = [
    "EAST_QUAD",
    "KV_QUAD",
    "MAP_PAIR",
    "WEST_QUAD",
    "Image",
    "SramPlacement",
    "Strips",
    "Symbols",
    "fp32_rows",
    "image_bytes",
    "image_digest",
    "put_fp32",
    "put_rows",
    "read_words",
]
