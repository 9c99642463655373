"""What the experiments in serving are asked to do, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import InputError
from cluster.experiments.option_types import (
    Arrivals,
    Burst,
    Gpu,
    GpuDtype,
    GpuTp,
    Groups,
    Limit,
    Link,
    LpuContext,
    LpuCycles,
    LpuDtype,
    LpuInterval,
    LpuOverlap,
    MaxBatch,
    Model,
    OutputTokens,
    PipelineChips,
    Pipelines,
    PromptTokens,
    Rate,
    Requests,
    Seed,
    SloTpot,
    SloTtft,
    Spread,
    TraceFile,
)
from cluster.option_checks import check_at_least, check_choice, check_chunk
from cluster.option_types import MODEL_SHAPE, ChipType, Chunk

if TYPE_CHECKING:
    from cluster.experiments.serving.arrivals import Lengths
    from cluster.experiments.serving.figures import Slo
    from cluster.experiments.serving.machines import LpuChoice
    from cluster.experiments.serving.scaling import Scaling

POOLS = ("gpu", "lpu", "both")
PLATFORM_NAMES = ("gpu-only", "lpu-only", "gpu+lpu", "cpx+lpu", "gpu+lpu-ffn", "cpx+lpu+gpu")
HANDOVERS = ("serial", "layers")


@dataclass(frozen=True)
class LoadSettings:
    """An open-loop load on a pool of GPU groups, of LPU pipelines, or on each; see ``load``.

    The pools:

    - pool: ``gpu``, ``lpu`` or ``both``, each with the whole load.
    - model: ``target`` or ``draft`` (shipped), a checkpoint directory, or a shape: its name or a
      ``config.json``.
    - lpu_model: that of the LPU pool; None: ``model``.

    The requests, as they come whether or not earlier ones are done:

    - trace: a CSV file of them (columns of the Azure LLM traces); None: they are drawn.
    - limit: of a trace the first so many; None: all.
    - arrivals: ``poisson``, or ``bursts`` of ``burst`` requests at once.
    - rate: requests per second.  requests: how many.
    - prompt_tokens, output_tokens: medians of log-normal lengths; spread: sigma of their logarithm.
    - seed: of everything drawn.

    What a good request keeps:

    - slo_ttft: seconds to the first token.  slo_tpot: seconds per further token.

    GPUs:

    - gpu: a preset or a TOML file.  gpu_tp: GPUs that share the model, a group.
    - gpu_groups: groups behind one queue; where the pool scales, those that always stay up.
    - gpu_groups_max: groups it may grow to; None: it does not scale.
    - scale_queue: waiting requests per group that start one more (None: 4).
    - scale_wait: seconds that one waits until a group starts (None: never for that).
    - scale_idle: idle seconds after which a group stops (None: 1).
    - scale_start: seconds until a new group takes requests (None: 10).
    - gpu_dtype: number type of weights.  max_batch: requests in a group's batch.

    LPUs:

    - chips: of one pipeline: 1, 2, 4, 8 or nodes of 8.  pipelines: behind one queue.
    - dtype: number type of weights, ``int8`` or ``fp16``.
    - context: positions of a request at most; None: the model's, at most 2,048, or where requests
      share several stages what the longest needs.
    - chip: a preset or a TOML file.
    - lpu_cycles_per_token: cycles of one token with host transfers; None: compiled, exact.
    - lpu_interval_cycles: cycles between two tokens that enter a pipeline; None: compiled, those of
      the full belt.
    - overlap: requests share the stages of a pipeline, as many as its chips have room for caches
      of; else each has it alone.
    - chunk: tokens of a prompt that share each install of weights, where each has it alone.

    Raises InputError, one line, for what cannot be.
    """

    pool: Annotated[str, typer.Option(help="gpu, lpu or both, each with the whole load.")] = "both"
    model: Annotated[str, typer.Option("--model", "--gpu-model", help=MODEL_SHAPE)] = "target"
    lpu_model: Annotated[
        str | None,
        typer.Option(help="Model of the LPU pool, if another.", show_default="--model"),
    ] = None
    trace: TraceFile = None
    limit: Limit = None
    arrivals: Arrivals = "poisson"
    rate: Rate = 200.0
    requests: Requests = 1000
    burst: Burst = 16
    prompt_tokens: PromptTokens = 64
    output_tokens: OutputTokens = 32
    spread: Spread = 0.6
    seed: Seed = 0
    slo_ttft: SloTtft = 1.0
    slo_tpot: SloTpot = 0.05
    gpu: Gpu = "h100"
    gpu_tp: GpuTp = 1
    gpu_groups: Groups = 1
    gpu_groups_max: Annotated[
        int | None,
        typer.Option(
            help="Let the GPU pool grow to so many groups and shrink to --gpu-groups.",
            show_default="it does not scale",
        ),
    ] = None
    scale_queue: Annotated[
        int | None,
        typer.Option(
            help="Scaling: waiting requests per group that start one more.", show_default="4"
        ),
    ] = None
    scale_wait: Annotated[
        float | None,
        typer.Option(
            help="Scaling: seconds that one waits until a group starts.", show_default="never"
        ),
    ] = None
    scale_idle: Annotated[
        float | None,
        typer.Option(help="Scaling: idle seconds after which a group stops.", show_default="1"),
    ] = None
    scale_start: Annotated[
        float | None,
        typer.Option(help="Scaling: seconds until a new group takes requests.", show_default="10"),
    ] = None
    gpu_dtype: GpuDtype = "fp16"
    max_batch: MaxBatch = 64
    chips: PipelineChips = 1
    pipelines: Pipelines = 1
    dtype: LpuDtype = "int8"
    context: LpuContext = None
    chip: ChipType = "groq-lpu-1"
    lpu_cycles_per_token: LpuCycles = None
    lpu_interval_cycles: LpuInterval = None
    overlap: LpuOverlap = True
    chunk: Chunk = 1

    def __post_init__(self) -> None:
        check_choice("--pool", self.pool, POOLS)
        _check_lpus(self)
        _ = self.scaling
        _check_requests(self)

    @property
    def scaling(self) -> Scaling | None:
        """The rule by which the GPU pool scales, if it does."""
        from cluster.experiments.serving.scaling import Scaling

        rule = {
            "queue": self.scale_queue,
            "wait_s": self.scale_wait,
            "idle_s": self.scale_idle,
            "start_s": self.scale_start,
        }
        named: dict[str, Any] = {name: value for name, value in rule.items() if value is not None}
        if self.gpu_groups_max is None:
            if named:
                option = "--scale-" + next(iter(named)).removesuffix("_s")
                raise InputError(f"{option}: the GPU pool does not scale; add --gpu-groups-max")
            return None
        if self.pool == "lpu":
            raise InputError("--gpu-groups-max with --pool lpu: no GPU serves; leave one out")
        return Scaling(self.gpu_groups, self.gpu_groups_max, **named)


@dataclass(frozen=True)
class DisaggregatedSettings:
    """Prefill on one kind of machine and decode on another; see ``disaggregated``.

    The platforms:

    - platform: which of ``PLATFORM_NAMES``; None: all.
    - model: ``target`` or ``draft`` (shipped), a checkpoint directory, or a shape: its name or a
      ``config.json``.
    - handover: the KV cache after a prefill crosses ``layers``, one by one, or ``serial``, whole.
    - link: between the machines, a preset or a TOML file.

    GPUs, presets or TOML files:

    - gpu; cpx: the prefill GPU of the platforms whose names begin with it.
    - gpu_tp: GPUs that share the model, a group.  gpu_groups: groups of each kind.
    - gpu_dtype: number type of weights.  max_batch: requests in a group's batch.

    The requests under load (one request alone comes first, of ``prompt_tokens`` and
    ``output_tokens`` exactly):

    - trace: a CSV file of them (columns of the Azure LLM traces); None: they are drawn.
    - limit: of a trace the first so many; None: all.
    - arrivals: ``poisson``, or ``bursts`` of ``burst`` requests at once.
    - rate: requests per second.  requests: how many.
    - prompt_tokens, output_tokens: medians of log-normal lengths; spread: sigma of their logarithm.
    - seed: of everything drawn.

    What a good request keeps:

    - slo_ttft: seconds to the first token.  slo_tpot: seconds per further token.

    LPUs:

    - chips: of one pipeline: 1, 2, 4, 8 or nodes of 8.
    - pipelines: in all, where layers are split a multiple of the GPU groups; None: one per group.
    - dtype: number type of weights, ``int8`` or ``fp16``.
    - context: positions of a request at most; None: the model's, at most 2,048, or where requests
      share several stages what the longest needs.
    - chip: a preset or a TOML file.
    - lpu_cycles_per_token: cycles of one token with host transfers; None: compiled, exact.
    - lpu_interval_cycles: cycles between two tokens that enter a pipeline; None: compiled, those of
      the full belt.
    - overlap: requests share the stages of a pipeline, as many as its chips have room for caches
      of; else each has it alone.
    - chunk: tokens of a prompt that share each install of weights, where each has it alone.
    - lpu_ffn_cycles: cycles of one layer's feed-forward network of a token; None: its share of the
      weights.

    Raises InputError, one line, for what cannot be.
    """

    platform: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(PLATFORM_NAMES)}; may be repeated.", show_default="all"),
    ] = None
    model: Model = "target"
    handover: Annotated[
        str, typer.Option(help="KV cache after the prefill: layers (one by one) or serial.")
    ] = "layers"
    link: Link = "pcie5-x16"
    gpu: Gpu = "h100"
    cpx: Annotated[str, typer.Option(help="GPU preset or TOML file for cpx.")] = "rubin-cpx"
    gpu_tp: GpuTp = 1
    gpu_groups: Groups = 1
    gpu_dtype: GpuDtype = "fp16"
    max_batch: MaxBatch = 64
    trace: TraceFile = None
    limit: Limit = None
    arrivals: Arrivals = "poisson"
    rate: Rate = 100.0
    requests: Requests = 200
    burst: Burst = 16
    prompt_tokens: PromptTokens = 64
    output_tokens: OutputTokens = 32
    spread: Spread = 0.6
    seed: Seed = 0
    slo_ttft: SloTtft = 1.0
    slo_tpot: SloTpot = 0.05
    chips: PipelineChips = 1
    pipelines: Annotated[
        int | None,
        typer.Option(
            help="LPU pipelines; where layers are split, a multiple of the GPU groups.",
            show_default="one per GPU group",
        ),
    ] = None
    dtype: LpuDtype = "int8"
    context: LpuContext = None
    chip: ChipType = "groq-lpu-1"
    lpu_cycles_per_token: LpuCycles = None
    lpu_interval_cycles: LpuInterval = None
    overlap: LpuOverlap = True
    chunk: Chunk = 1
    lpu_ffn_cycles: Annotated[
        int | None,
        typer.Option(
            help="Cycles of one layer's FFN of a token.", show_default="its share of the weights"
        ),
    ] = None

    def __post_init__(self) -> None:
        _check_lpus(self)
        check_choice("--handover", self.handover, HANDOVERS)
        check_at_least("--lpu-ffn-cycles", self.lpu_ffn_cycles, 1)
        for name in self.platform or ():
            check_choice("--platform", name, PLATFORM_NAMES)
        if self.chunk > 1 and self.platform and "lpu-only" not in self.platform:
            raise InputError(
                f"--chunk {self.chunk} with --platform {' and '.join(self.platform)}: GPUs read "
                "the prompts there; leave one out, or add --platform lpu-only"
            )
        _check_requests(self)


Serving = LoadSettings | DisaggregatedSettings
"""Settings of requests that come to machines."""


def _check_lpus(settings: Serving) -> None:
    check_at_least("--chips", settings.chips, 1)
    check_choice("--dtype", settings.dtype, ("int8", "fp16"))
    check_at_least("--context", settings.context, 1)
    check_at_least("--lpu-cycles-per-token", settings.lpu_cycles_per_token, 1)
    check_at_least("--lpu-interval-cycles", settings.lpu_interval_cycles, 1)
    check_chunk(settings.chunk)


def _check_requests(settings: Serving) -> None:
    slo_of(settings)
    check_choice("--arrivals", settings.arrivals, ("poisson", "bursts"))
    check_at_least("--limit", settings.limit, 1)
    lengths_of(settings)  # checked beside a trace too: they may be a lone request's
    if settings.trace is None and settings.limit is not None:
        raise InputError("--limit is of a --trace: name one, or use --requests")


def lpu_choice_of(settings: Serving, longest: int | None = None) -> LpuChoice:
    """What the settings say about one LPU pipeline; longest: positions of the longest request."""
    from cluster.experiments.serving.machines import LpuChoice

    s = settings
    return LpuChoice(
        s.chips,
        s.chip,
        s.dtype,
        s.context,
        s.lpu_cycles_per_token,
        s.lpu_interval_cycles,
        s.overlap,
        longest,
        s.chunk,
    )


def slo_of(settings: Serving) -> Slo:
    """What a good request keeps."""
    from cluster.experiments.serving.figures import Slo

    return Slo(settings.slo_ttft, settings.slo_tpot)


def lengths_of(settings: Serving) -> Lengths:
    """The lengths of prompts and answers."""
    from cluster.experiments.serving.arrivals import Lengths

    return Lengths(settings.prompt_tokens, settings.output_tokens, settings.spread)
