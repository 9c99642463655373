"""Options that several experiments share, as types of a field of their settings objects.

The machines' presets are in their help texts.  Meaning and units are told by each settings object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.gpu import GPU_PRESETS, LINK_PRESETS
from cluster.option_types import MODEL_SHAPE

Model = Annotated[str, typer.Option(help=MODEL_SHAPE)]
GPU_HELP = f"GPU preset ({', '.join(GPU_PRESETS)}) or TOML file."
Gpu = Annotated[str, typer.Option(help=GPU_HELP)]
Link = Annotated[str, typer.Option(help=f"Link preset ({', '.join(LINK_PRESETS)}) or TOML file.")]
GpuTp = Annotated[int, typer.Option(help="GPUs that share the model: a group.")]
Groups = Annotated[int, typer.Option(help="GPU groups behind one queue.")]
GpuDtype = Annotated[str, typer.Option(help="Number type of weights on GPUs.")]
MaxBatch = Annotated[int, typer.Option(help="Requests in a GPU group's batch at most.")]

LpuDtype = Annotated[str, typer.Option(help="Number type of weights on LPUs: int8 or fp16.")]
LpuContext = Annotated[
    int | None,
    typer.Option(
        help="Positions of a request on an LPU pipeline at most.",
        show_default="the model's, at most 2,048; the longest request's where they overlap",
    ),
]
PipelineChips = Annotated[int, typer.Option(help="LPUs of one pipeline: 1, 2, 4, 8 or nodes of 8.")]
Pipelines = Annotated[int, typer.Option(help="LPU pipelines behind one queue.")]
CYCLES_HELP = "Cycles of one token on the LPUs, host transfers included."
LpuCycles = Annotated[int | None, typer.Option(help=CYCLES_HELP, show_default="compiled, exact")]
LpuInterval = Annotated[
    int | None,
    typer.Option(
        help="Cycles between two tokens that enter a pipeline.",
        show_default="compiled: the full belt's",
    ),
]
LpuOverlap = Annotated[
    bool,
    typer.Option(
        "--overlap/--no-overlap", help="Requests share the stages of a pipeline, or have it alone."
    ),
]

TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", help="CSV of requests (Azure LLM columns).", show_default="none"),
]
Limit = Annotated[
    int | None, typer.Option(help="With --trace: the first so many.", show_default="all")
]
Arrivals = Annotated[str, typer.Option(help="poisson or bursts.")]
Rate = Annotated[float, typer.Option(help="Requests per second.")]
Requests = Annotated[int, typer.Option(help="How many requests.")]
Burst = Annotated[int, typer.Option(help="With bursts: requests that come at once.")]
PromptTokens = Annotated[int, typer.Option(help="Median tokens of a prompt.")]
OutputTokens = Annotated[int, typer.Option(help="Median tokens of an answer.")]
Spread = Annotated[float, typer.Option(help="Sigma of the lengths' logarithm.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]
SloTtft = Annotated[float, typer.Option(help="SLO: seconds to the first token.")]
SloTpot = Annotated[float, typer.Option(help="SLO: seconds per further token.")]
