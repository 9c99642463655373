from .blocks import C2C, MATMUL, SOFTMAX, VXM, Numbers
from .compiler import (
    belt_intervals,
    belt_room,
    compile_belt,
    compile_decoder,
    compile_model,
    compile_model_apart,
    join_images,
)
from .expert_weights import router_columns, router_parts, router_width
from .fit import (
    NODE,
    check_parallelism,
    deal_model,
    ffn_columns,
    machine_sizes,
    memory_bytes,
    sequences_that_fit,
)
from .golden import GoldenDecoder
from .host import (
    Host,
    adopt,
    belt_entry,
    bucket_at,
    chunk_entry,
    ends_prompt,
    entry_at,
    home_of,
    pick_token,
    prompt_entry,
    token_entry,
)
from .image import ChipImages
from .lanes import Layout, PartitionError
from .partition import QUANT_RANGE, SLACK, PartitionedModel, partition_model, random_chip_weights
from .pipeline import Pipeline, build_pipeline
from .stage_code import Body
from .stages import ATTENTION, Stage, ffn_part, part_tiles, single_stage

__all__ = [
    "ATTENTION",
    "C2C",
    "MATMUL",
    "NODE",
    "QUANT_RANGE",
    "SLACK",
    "SOFTMAX",
    "VXM",
    "Body",
    "ChipImages",
    "GoldenDecoder",
    "Host",
    "Layout",
    "Numbers",
    "PartitionError",
    "PartitionedModel",
    "Pipeline",
    "Stage",
    "adopt",
    "belt_entry",
    "belt_intervals",
    "belt_room",
    "bucket_at",
    "build_pipeline",
    "check_parallelism",
    "chunk_entry",
    "compile_belt",
    "compile_decoder",
    "compile_model",
    "compile_model_apart",
    "deal_model",
    "ends_prompt",
    "entry_at",
    "ffn_columns",
    "ffn_part",
    "home_of",
    "join_images",
    "machine_sizes",
    "memory_bytes",
    "part_tiles",
    "partition_model",
    "pick_token",
    "prompt_entry",
    "random_chip_weights",
    "router_columns",
    "router_parts",
    "router_width",
    "sequences_that_fit",
    "single_stage",
    "token_entry",
]
