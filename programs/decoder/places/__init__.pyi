from .matrices import MatrixPlaces
from .stage import (
    AttentionMatrices,
    DecoderPlaces,
    FfnMatrices,
    Matrices,
    SlidingMask,
    StagePlaces,
    place_choice,
    place_decoder,
)

__all__ = [
    "AttentionMatrices",
    "DecoderPlaces",
    "FfnMatrices",
    "Matrices",
    "MatrixPlaces",
    "SlidingMask",
    "StagePlaces",
    "place_choice",
    "place_decoder",
]
