from .compiler import compile_encoder, layers_of_chips
from .golden import golden_encoder
from .image import read_encoder
from .places import place_encoder
from .shape import EncoderShape

__all__ = [
    "EncoderShape",
    "compile_encoder",
    "golden_encoder",
    "layers_of_chips",
    "place_encoder",
    "read_encoder",
]
