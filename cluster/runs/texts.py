"""From a prompt to its continuation: model or artifact opened, compiled, run, and told about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from chip.engine import Chip
from chip.spec import load_chip_spec
from cluster.errors import InputError
from cluster.listening import Listener
from cluster.metrics import Board, RunWatch
from cluster.option_types import DEFAULT_CHIP
from cluster.processes import Placement, actors_text, chips_per_actor, open_carried
from cluster.runs.generation import (
    LENGTH,
    GenerationResult,
    launches_of,
    planned_launches,
    run_generation,
)
from cluster.runs.settings import DTYPES, GenerateSettings
from cluster.runs.spare_generation import generate_on_spares
from cluster.tracing import Launched, TraceRequest, trace_text
from interconnect.wiring import Topology
from programs.artifact import Artifact, decoder_of, load
from programs.decoder import ChipImages, adopt, compile_model, compile_model_apart
from programs.faults import FaultPlan, fault_summary, loses_nodes
from programs.models import Checkpoint, chat_prompt, continuation, open_model
from programs.plans import floor_of
from programs.running import Generation, saturation_json, saturation_text

#: Experiment and platform of ``lpu generate``.
SERVED = ("generate", "lpu")
#: Where the chips were that no actor had.
IN_PROCESS = "in one process without Ray"


@dataclass(frozen=True)
class Generated:
    """A finished text.

    directory: of the model's checkpoint, or its GGUF file.  artifact: what ran; it has its memory
    images if they were asked for.  prompt: token ids.  launches: all of them, prompt included.
    nodes: those in use in the end, empty where none was lost.  trace: figures of the trace, None
    without one.
    """

    settings: GenerateSettings
    directory: Path
    artifact: Artifact
    prompt: list[int]
    text: str
    result: GenerationResult
    launches: list[Launched]
    nodes: list[int]
    trace: dict[str, int] | None
    floor_cycles: int
    """What no schedule of the same chips could beat, for a token like the last one."""

    @property
    def tokens(self) -> list[int]:
        """The generated token ids."""
        return self.result.tokens

    @property
    def ended(self) -> str:
        """Why it ends: ``stop`` for an end token, ``length`` for as many tokens as asked for."""
        return self.result.ended

    @property
    def cycles(self) -> list[int]:
        """Exact cycles of the launch that gave each token."""
        return self.result.cycles_per_token

    @property
    def digest(self) -> str:
        """Of all that the run did, in hex: the same however chips are dealt to processes."""
        return self.result.digest

    @property
    def virtual_seconds(self) -> float:
        """Time of the modelled machine, the prompt and host transfers (estimated) included."""
        return self.result.virtual_seconds

    @property
    def saturated(self) -> str:
        """What conversions lost, in words: kinds, counts, the first layer; empty for nothing."""
        return saturation_text(self.result.saturations)

    @property
    def chips(self) -> tuple[Chip, ...]:
        """The chips as the last launch left them, to look into: ``chips[0].sram[44, 8186]``.

        Raises InputError where other processes had them.
        """
        if not self.result.machine:
            raise InputError(
                "the chips of this run were in other processes; generate without actors to look "
                "into them"
            )
        return self.result.machine

    @property
    def tokens_per_second(self) -> float:
        """In virtual time, the prompt included."""
        return len(self.result.tokens) / self.result.virtual_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """In virtual time, without the prompt; 0 where the prompt gave the only token."""
        result = self.result
        return result.decode_tokens / result.decode_seconds if result.decode_tokens else 0.0

    @property
    def wall_tokens_per_second(self) -> float:
        """As the host made them, from the first launch to the last."""
        return len(self.result.tokens) / self.result.token_wall_seconds


def generate(
    settings: GenerateSettings,
    *,
    compiled: Artifact | None = None,
    faults: FaultPlan | None = None,
    tracing: TraceRequest | None = None,
    with_memory: bool = False,
    listener: Listener | None = None,
    board: Board | None = None,
    started: float | None = None,
) -> Generated:
    """Generate text on emulated chips: one node, or a pipeline of nodes.

    compiled: an artifact in memory, instead of one that the settings name.
    faults: what befalls the modelled machine.  tracing: a trace to write.  with_memory: the
    artifact that comes back has its memory images.  listener: told phases and tokens.  board:
    where metrics go.  started: the ``perf_counter`` that wall times begin at, None for now.

    Raises an LpuError for a model, an artifact or a prompt that does not fit, and for a run that
    found a problem.
    """
    started = perf_counter() if started is None else started
    listener = Listener() if listener is None else listener
    given = compiled
    if given is None and settings.artifact is not None:
        given = load(settings.artifact)
    if given is None:
        checkpoint = open_model(settings.model or "target")
    else:
        check_compiled_so(given, settings)
        given, checkpoint = open_carried(given, settings.model)
    directory = checkpoint.path
    assert directory is not None
    tokenizer = checkpoint.tokenizer
    ids = prompt_of(settings, checkpoint)
    # A template's words are not what anybody wants to read: the answer stands alone.
    listener.begin([] if settings.chat else ids, tokenizer.decode)
    positions = len(ids) + settings.max_new_tokens - 1
    images = None
    if given is not None:
        artifact = adopt(given, checkpoint, positions)
    else:
        listener.phase("compiling")
        artifact, images = compile_apart(settings, checkpoint, positions)
        if with_memory:
            artifact.memory, images = images.of(range(artifact.chips)), None
    job = job_of(settings, ids, checkpoint)
    if tracing is not None:  # too large a trace is refused before the run, not after it
        tracing.plan(artifact, planned_launches(artifact, job))
    placement = Placement(
        chips_per_actor(artifact.chips, settings.packing),
        settings.address,
        settings.in_process,
        faults=faults,
    )
    watch = None if board is None else RunWatch(board, "generate", SERVED)
    nodes: list[int] = []
    if given is None and loses_nodes(faults, artifact.chips):
        survived = generate_on_spares(
            lambda wiring: _compile_whole(settings, checkpoint, positions, wiring),
            artifact.chips,
            job,
            placement,
            listener,
            started,
            watch=watch,
        )
        artifact, result, nodes = survived.artifact, survived.result, survived.nodes
    else:
        result = run_generation(
            artifact, job, placement, listener, started, watch=watch, images=images
        )
    launches = launches_of(result, [tokenizer.decode([token]) for token in result.tokens])
    trace = None
    if tracing is not None:
        listener.phase("writing the trace")
        trace = tracing.write(artifact, launches).summary()
    if board is not None:
        publish_generation(board, result, len(ids))
    text = continuation(tokenizer, ids, result.tokens)
    decoder = decoder_of(artifact)
    floor = floor_of(
        checkpoint.config,
        artifact.spec,
        tp=decoder.tp,
        stages=decoder.pp,
        dtype=decoder.dtype,
        context=len(ids) + len(result.tokens) - 1,
    )
    return Generated(
        settings, directory, artifact, ids, text, result, launches, nodes, trace, floor.cycles
    )


def generation_facts(done: Generated) -> list[tuple[str, str]]:
    """What there is to say of a finished text, for people."""
    result = done.result
    own, predicted = result.whole_cycles
    cycles, above = "none but the first", ""
    if own:
        low, high = min(own), max(own)
        cycles = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        cycles += f" ({'as' if own == predicted else 'NOT as'} predicted)"
        above = f"; the last token took {own[-1] / done.floor_cycles:.2f} times as many"
    clock = done.artifact.spec.clock_hz / 1e6
    cut = ", cut by --max-new-tokens" if result.ended == LENGTH else ""
    where = actors_text(result.actors, result.chips) if result.actors else IN_PROCESS
    facts = [
        ("tokens", f"{len(result.tokens)} after a prompt of {len(done.prompt)}{cut}"),
        (
            "first token",
            f"after {result.first_token_cycles:,} cycles, {result.decode[0] + 1} launches",
        ),
        ("cycles per token", cycles),
        ("floor of the machine", f"{done.floor_cycles:,}{above}"),
        (
            "virtual speed",
            f"{done.decode_tokens_per_second:,.0f} tokens/s decoding, "
            f"{done.tokens_per_second:,.0f} with the prompt ({clock:g} MHz, PCIe included)",
        ),
        ("wall speed", f"{done.wall_tokens_per_second:,.1f} tokens/s"),
        (
            "wall time",
            f"{result.wall_seconds:.1f} s, first token at {result.first_token_seconds:.1f} s",
        ),
        ("machine", f"{result.chips} chips, {where}, {done.settings.sync}"),
        ("digest", result.digest),
    ]
    if result.saturations:
        facts.append(("saturated", saturation_text(result.saturations)))
    if result.recoveries:
        facts.append(("lost processes", f"{len(result.recoveries)} times replaced"))
    if result.faults:
        facts.append(("faults", fault_summary(result.faults)))
    if done.nodes:
        facts.append(("nodes in use", ", ".join(map(str, done.nodes))))
    if done.trace is not None:
        facts.append(("trace", trace_text(done.trace)))
    return facts


def generation_json(done: Generated) -> dict[str, Any]:
    """The same for programs: the object of ``lpu generate --json``."""
    result = done.result
    return {
        "tokens": result.tokens,
        "text": done.text,
        "ended": result.ended,
        "chips": result.chips,
        "actors": result.actors,
        "first_token_cycles": result.first_token_cycles,
        "predicted_first_token_cycles": result.predicted_first_token_cycles,
        "cycles_per_token": result.cycles_per_token,
        "predicted_cycles_per_token": result.predicted_cycles_per_token,
        "floor_cycles": done.floor_cycles,
        "digest": result.digest,
        "virtual_seconds": result.virtual_seconds,
        "tokens_per_second": done.tokens_per_second,
        "decode_tokens_per_second": done.decode_tokens_per_second,
        "wall_seconds": result.wall_seconds,
        "first_token_seconds": result.first_token_seconds,
        "wall_tokens_per_second": done.wall_tokens_per_second,
        "prompt_tokens": len(done.prompt),
        "sync": done.settings.sync,
        "recoveries": len(result.recoveries),
        "recovery_seconds": [recovery.seconds for recovery in result.recoveries],
        "refused": dict(zip(("attachments", "vectors"), result.refused, strict=True)),
        "faults": result.faults or None,
        "saturations": saturation_json(result.saturations),
        "nodes": done.nodes or None,
        **({} if done.trace is None else {"trace": done.trace}),
    }


def publish_generation(board: Board, result: GenerationResult, prompt_tokens: int) -> None:
    """The request's counts and latencies; its tokens were published while they came."""
    per_token = result.decode_seconds / max(1, result.decode_tokens)
    board.add("lpu_prompt_tokens", prompt_tokens, *SERVED)
    board.add("lpu_requests", 1, *SERVED)
    first = result.virtual_seconds - per_token * (len(result.tokens) - 1)
    board.observe("lpu_time_to_first_token_seconds", [first], *SERVED)
    if len(result.tokens) > 1:
        board.observe("lpu_time_per_output_token_seconds", [per_token], *SERVED)


def prompt_of(settings: GenerateSettings, checkpoint: Checkpoint) -> list[int]:
    """Token ids of the prompt; InputError for none."""
    if settings.chat:
        ids = chat_prompt(checkpoint, [{"role": "user", "content": settings.prompt}])
        empty = "the chat template makes nothing of --prompt: use another, or no --chat"
    else:
        ids = checkpoint.tokenizer.encode(settings.prompt).ids
        empty = "--prompt is empty: give at least one character"
    if not ids:
        raise InputError(empty)
    return ids


def compile_apart(
    settings: GenerateSettings, checkpoint: Checkpoint, positions: int
) -> tuple[Artifact, ChipImages]:
    """The model for ``positions`` or the context asked for, and its memory images to make."""
    tp, stages = settings.split
    return compile_model_apart(
        checkpoint,
        tp=tp,
        dtype=settings.dtype,
        context=settings.context or positions,
        chip=settings.chip,
        pp=stages,
        chunk=settings.chunk,
    )


def _compile_whole(
    settings: GenerateSettings, checkpoint: Checkpoint, positions: int, wiring: Topology
) -> Artifact:
    tp, stages = settings.split
    return compile_model(
        checkpoint,
        tp=tp,
        dtype=settings.dtype,
        context=settings.context or positions,
        chip=settings.chip,
        pp=stages,
        wiring=wiring,
        chunk=settings.chunk,
    )


def check_compiled_so(artifact: Artifact, settings: GenerateSettings) -> None:
    """Raise InputError where settings ask for another machine than ``artifact`` was compiled for.

    What is as by default asks for nothing.  Raises ArtifactError for an artifact of no model.
    """
    facts = decoder_of(artifact)
    context = settings.context if (settings.context or 0) > facts.context else None
    same = settings.chip == DEFAULT_CHIP or load_chip_spec(settings.chip) == artifact.spec
    for option, asked, has in (
        ("--chips", settings.chips, artifact.chips),
        ("--tp", settings.tp, facts.tp),
        ("--pp", settings.pp, facts.pp),
        ("--dtype", None if settings.dtype == DTYPES[0] else settings.dtype, facts.dtype),
        ("--context", context, facts.context),
        ("--chunk", None if settings.chunk == 1 else settings.chunk, facts.chunk),
        ("--chip", None if same else settings.chip, artifact.spec.name),
    ):
        if asked is not None and asked != has:
            raise InputError(
                f"{option} {asked}: the artifact was compiled for {has}; leave {option} out, or "
                "compile another"
            )


def job_of(
    settings: GenerateSettings,
    prompt: Sequence[int],
    checkpoint: Checkpoint,
    new_tokens: int | None = None,
) -> Generation:
    """What to generate after ``prompt``; new_tokens: at most, None for what the settings say."""
    return Generation(
        prompt=tuple(prompt),
        max_new_tokens=new_tokens or settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        stop=() if settings.ignore_eos else checkpoint.end_tokens,
        sync=settings.sync,
    )
