"""What the agentic experiment is asked to do, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import typer

from cluster.errors import InputError
from cluster.experiments.option_types import (
    Gpu,
    GpuTp,
    Link,
    LpuDtype,
    MaxBatch,
    PipelineChips,
    Seed,
)
from cluster.option_checks import check_choice, check_node
from cluster.option_types import ChipType

MOST_REQUESTS = 10_000


@dataclass(frozen=True)
class AgenticSettings:
    """Agents' requests routed step by step to LPUs and GPUs; see ``agentic``.

    - router: ``rule``, ``learned``, or ``module:function`` of one's own; ``actor``,
      ``actor/learned`` or ``actor/module:function``: the same in a Ray actor.
    - requests: of agents, each a graph of steps.  rate: requests per second.
    - seed: of everything drawn.
    - slo: seconds from end to end that a good request keeps.
    - link: between the orchestrator and each pool, a preset or a TOML file.
    - corrupt: probability, from 0 to below 1, that a message is cut short on its way.

    GPUs:

    - gpu: a preset or a TOML file.  gpu_tp: GPUs that share a model, a group.
    - gpu_groups: groups of each model.  max_batch: requests in a group's batch.

    LPUs:

    - chips: of one pipeline: 1, 2, 4 or 8.  pipelines: of each model.
    - dtype: number type of weights, ``int8`` or ``fp16``.  chip: a preset or a TOML file.

    Raises InputError, one line, for what cannot be.
    """

    router: Annotated[
        str,
        typer.Option(
            help="rule, learned, or module:function of your own; actor, actor/learned or "
            "actor/module:function: the same in a Ray actor."
        ),
    ] = "rule"
    requests: Annotated[int, typer.Option(help="Requests of agents.")] = 8
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 50.0
    seed: Seed = 0
    slo: Annotated[float, typer.Option(help="SLO: seconds from end to end.")] = 0.1
    link: Link = "pcie5-x16"
    corrupt: Annotated[
        float, typer.Option(help="Probability that a message is cut short on its way.")
    ] = 0.0
    gpu: Gpu = "h100"
    gpu_tp: GpuTp = 1
    gpu_groups: Annotated[int, typer.Option(help="GPU groups of each model.")] = 1
    max_batch: MaxBatch = 64
    chips: PipelineChips = 1
    pipelines: Annotated[int, typer.Option(help="LPU pipelines of each model.")] = 1
    dtype: LpuDtype = "int8"
    chip: ChipType = "groq-lpu-1"

    def __post_init__(self) -> None:
        check_node(self.chips)
        check_choice("--dtype", self.dtype, ("int8", "fp16"))
        if not 1 <= self.requests <= MOST_REQUESTS:
            raise InputError(f"--requests {self.requests}: use 1 to {MOST_REQUESTS:,}")
        if not (self.slo > 0 and math.isfinite(self.slo)):
            raise InputError(f"--slo {self.slo}: use a finite number of seconds above 0")
