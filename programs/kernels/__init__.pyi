from .attention import AttentionPlaces, HeadTile, Segment, Segments, append_values, attend, rope
from .bias import add_bias
from .experts import RoutingPlaces, route
from .ffn import gated_product
from .gemm import (
    EAST,
    PAIRS,
    PLANES,
    WEST,
    Emitted,
    Finish,
    RowOperand,
    Rows,
    cut,
    product,
    step_cycles,
    store_results,
    tiles_of,
)
from .gemv import PAIR_ORDER, PLANE_ORDER, Activations, ColumnBlock, matmul16_round, matmul_round
from .head_norm import HeadNormPlaces, norm_heads
from .norm import Constants, dynamic_factor, factor_of_sum, halve, in_two, norm_factor, quantise
from .planes import Weights, put_weights
from .requantise import Affine, logits, maximum_of_nine, requantise_rows, unsigned_rows
from .wide_norm import WideNormPlaces, cap_words, lane_squares, scale_words

__all__ = [
    "EAST",
    "PAIRS",
    "PAIR_ORDER",
    "PLANES",
    "PLANE_ORDER",
    "WEST",
    "Activations",
    "Affine",
    "AttentionPlaces",
    "ColumnBlock",
    "Constants",
    "Emitted",
    "Finish",
    "HeadNormPlaces",
    "HeadTile",
    "RoutingPlaces",
    "RowOperand",
    "Rows",
    "Segment",
    "Segments",
    "Weights",
    "WideNormPlaces",
    "add_bias",
    "append_values",
    "attend",
    "cap_words",
    "cut",
    "dynamic_factor",
    "factor_of_sum",
    "gated_product",
    "halve",
    "in_two",
    "lane_squares",
    "logits",
    "matmul16_round",
    "matmul_round",
    "maximum_of_nine",
    "norm_factor",
    "norm_heads",
    "product",
    "put_weights",
    "quantise",
    "requantise_rows",
    "rope",
    "route",
    "scale_words",
    "step_cycles",
    "store_results",
    "tiles_of",
    "unsigned_rows",
]
