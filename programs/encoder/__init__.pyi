from .compiler import compile_encoder, layers_of_chips
from .golden import golden_encoder
from .image import read_encoder
from .places import place_encoder
from .shape import EncoderShape, random_layers, random_tokens

__all__ = [
    "EncoderShape",
    "compile_encoder",
    "golden_encoder",
    "layers_of_chips",
    "place_encoder",
    "random_layers",
    "random_tokens",
    "read_encoder",
]
