from .matrices import MatrixPlaces
from .planes import KEY_MAPS, RECENT_MAPS, VALUE_MAPS, blocks_of, cached_words
from .stage import (
    AttentionMatrices,
    DecoderPlaces,
    FfnMatrices,
    LatentMatrices,
    Matrices,
    SlidingMask,
    StagePlaces,
    launch_of,
    place_choice,
    place_decoder,
)

__all__ = [
    "KEY_MAPS",
    "RECENT_MAPS",
    "VALUE_MAPS",
    "AttentionMatrices",
    "DecoderPlaces",
    "FfnMatrices",
    "LatentMatrices",
    "Matrices",
    "MatrixPlaces",
    "SlidingMask",
    "StagePlaces",
    "blocks_of",
    "cached_words",
    "launch_of",
    "place_choice",
    "place_decoder",
]
