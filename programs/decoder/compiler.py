"""The compiler: a partitioned decoder becomes cycle-tagged programs for every context bucket.

partition -> deal to stages -> place (programs.decoder) -> schedule each kind of block and the head
(programs.decoder.blocks) -> relocate them in time and memory and hand x from stage to stage over
real cables (programs.decoder.pipeline) -> artifact.

A stage is a group of ``tp`` chips of one node; every chip of a stage runs the same blocks, what
differs is what its SRAM holds and, between stages, what it sends.  One launch takes one token
through all stages; chips of later stages wait for their Receives at their compiled cycles.  A
decode program feeds one token and ends in logits; a prefill program is the same without the head.
A prompt's tokens follow each other through the stages, one in each (``programs.running.feeding``).
Programs for chunks of them, whose tokens share every install of weights, are made where asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from chip.program import Program
from chip.scheduling import CompileError
from chip.spec import ChipSpec, load_chip_spec
from interconnect.wiring import Topology, node_cables, topology_of
from programs.artifact import TOPOLOGIES, Artifact, Bindings, DecoderFacts, Planes, planes_of
from programs.decoder.blocks import Numbers
from programs.decoder.fit import deal_stages, sequences_that_fit
from programs.decoder.host import belt_entry, chunk_entry, prompt_entry, token_entry
from programs.decoder.image import ChipImages
from programs.decoder.partition import PartitionedModel, partition_model
from programs.decoder.pipeline import Pipeline, build_pipeline
from programs.decoder.places import (
    KEY_MAPS,
    RECENT_MAPS,
    VALUE_MAPS,
    AttentionMatrices,
    DecoderPlaces,
    StagePlaces,
)
from programs.decoder.stages import Stage, of_layers, split_layers
from programs.models import Checkpoint
from programs.sram import Image

#: Context buckets in positions; a program scores every position of its bucket.
BUCKETS = tuple(1 << n for n in range(6, 16))


def buckets_up_to(max_context: int) -> list[int]:
    """The context buckets that programs are made for."""
    buckets = [b for b in BUCKETS if b < max_context]
    buckets += [next((b for b in BUCKETS if b >= max_context), 0)]
    if not buckets[-1] or max_context < 1:
        raise CompileError(f"context {max_context}: must be 1 to {BUCKETS[-1]} positions")
    return buckets


def compile_model(
    checkpoint: Checkpoint,
    *,
    tp: int,
    dtype: str,
    context: int,
    chip: str,
    pp: int = 1,
    wiring: Topology | None = None,
    chunk: int = 1,
    every_logit: bool = False,
) -> Artifact:
    """Compile for ``pp`` stages of ``tp`` chips of type ``chip`` and ``context`` positions.

    wiring, chunk, every_logit: as for ``compile_decoder``.  Raises CompileError when it does not
    fit, or the model was not made for so many positions.
    """
    compiled, images = compile_model_apart(
        checkpoint,
        tp=tp,
        dtype=dtype,
        context=context,
        chip=chip,
        pp=pp,
        wiring=wiring,
        chunk=chunk,
        every_logit=every_logit,
    )
    compiled.memory = images.of(range(compiled.chips))
    join_images(compiled)
    return compiled


def compile_model_apart(
    checkpoint: Checkpoint,
    *,
    tp: int,
    dtype: str,
    context: int,
    chip: str,
    pp: int = 1,
    wiring: Topology | None = None,
    chunk: int = 1,
    every_logit: bool = False,
) -> tuple[Artifact, ChipImages]:
    """As ``compile_model``, the memory images apart: whoever has a chip reads its weights."""
    most = checkpoint.config.max_position
    if context > most:
        raise CompileError(
            f"{context} positions asked for, but {checkpoint.path} was made for {most}; shorten "
            "the prompt, or lower --max-new-tokens or --context"
        )
    model = partition_model(checkpoint, tp, dtype)
    return compile_apart(
        model,
        load_chip_spec(chip),
        context,
        pp=pp,
        wiring=wiring,
        chunk=chunk,
        every_logit=every_logit,
    )


def compile_decoder(
    model: PartitionedModel,
    spec: ChipSpec,
    max_context: int = 256,
    *,
    weights: bool = True,
    pp: int = 1,
    stages: Sequence[Stage] | None = None,
    wiring: Topology | None = None,
    chunk: int = 1,
    every_logit: bool = False,
) -> Artifact:
    """Compile a partitioned decoder; raises CompileError when it does not fit.

    ``max_context``: positions the KV cache holds; programs are made for every bucket up to it.
    ``weights=False`` leaves the memory images empty (timing only).  ``pp``: pipeline stages of
    ``model.layout.tp`` chips each, dealt so that the slowest is as fast as can be; ``stages``: the
    stages themselves instead.
    ``wiring``: the cables between the chips, if not those of the usual machine of their number.
    ``chunk``: tokens of a prompt that go through the stages together, 1 to MOST_CHUNK; programs
    for one token are made as well.  ``every_logit``: the last chunk gives the logits of each of its
    tokens, which verify drafted ones.
    """
    artifact, images = compile_apart(
        model,
        spec,
        max_context,
        pp=pp,
        stages=stages,
        wiring=wiring,
        chunk=chunk,
        every_logit=every_logit,
    )
    if weights:
        artifact.memory = images.of(range(artifact.chips))
    return artifact


def compile_apart(
    model: PartitionedModel,
    spec: ChipSpec,
    max_context: int = 256,
    *,
    pp: int = 1,
    stages: Sequence[Stage] | None = None,
    wiring: Topology | None = None,
    chunk: int = 1,
    every_logit: bool = False,
) -> tuple[Artifact, ChipImages]:
    """As ``compile_decoder``, the memory images apart: no weight has been read."""
    layout = model.layout
    buckets = buckets_up_to(max_context)
    places = StagePlaces(
        spec, layout, model.dtype, buckets[-1], chunk=chunk, every_logit=every_logit
    )
    dealt = list(stages) if stages is not None else deal_stages(places, pp)
    dealt = of_layers(dealt, layout.layer_kinds)
    if any(stage.head_parts > 1 for stage in dealt):
        raise CompileError("a head in parts is for plans alone: the host reads one stage's logits")
    if model.split != split_layers(dealt):
        raise CompileError("the stages split other FFNs than the partitioned model does")
    chips = layout.tp * len(dealt)
    numbers, topology = Numbers.of(model.config), wiring or topology_of(chips)
    pipeline = build_pipeline(dealt, places, numbers, topology)
    programs: dict[str, list[Program]] = {}
    program_of_chip: list[int] = []
    for context in buckets:
        for prefill in (False, True):
            entry = token_entry(context, prefill)
            programs[entry], program_of_chip = pipeline.programs(context, head=not prefill)
        for end in (False, True) if len(dealt) > 1 else ():
            entry = prompt_entry(context, end)
            programs[entry], program_of_chip = pipeline.prompt_programs(context, end)
    if chunk > 1:
        of_chunks = build_pipeline(dealt, places, numbers, topology, chunk)
        more, chunk_program_of_chip = _chunk_programs(of_chunks, buckets)
        # chips that share a program of a token and one of a chunk share all
        both = list(zip(program_of_chip, chunk_program_of_chip, strict=True))
        kinds = list(dict.fromkeys(both))
        programs = {name: [own[a] for a, _ in kinds] for name, own in programs.items()}
        programs |= {name: [own[b] for _, b in kinds] for name, own in more.items()}
        program_of_chip = [kinds.index(kind) for kind in both]
    artifact = decoder_artifact(pipeline, model, programs, program_of_chip, buckets)
    return artifact, chip_images(pipeline, model)


def _chunk_programs(
    pipeline: Pipeline, buckets: Sequence[int]
) -> tuple[dict[str, list[Program]], list[int]]:
    """The programs of chunks by entry point, and which of them each chip runs."""
    programs: dict[str, list[Program]] = {}
    for context, end in itertools.product(buckets, (False, True)):
        name = chunk_entry(context, end)
        programs[name], program_of_chip = pipeline.programs(context, head=end)
        if len(pipeline.stages) > 1:
            name = chunk_entry(context, end, together=True)
            programs[name], program_of_chip = pipeline.prompt_programs(context, end)
    return programs, program_of_chip


def compile_belt(
    model: PartitionedModel,
    spec: ChipSpec,
    context: int,
    pp: int,
    *,
    weights: bool = True,
    sequences: int | None = None,
    batch: int = 1,
) -> Artifact:
    """Compile a conveyor belt of ``pp`` stages with caches for ``sequences`` (default: what fills
    it), of which every stage takes ``batch`` at a time.

    One launch is one beat: every stage works on a token of each sequence of a group and hands x
    on.  Group g is sequences ``batch`` g to ``batch`` (g + 1) - 1; of n groups (the last one is
    filled up) entry ``belt-CONTEXT-K``, of the positions that a sequence may have, is for beats of
    number K modulo n; stage s then works on group (K - s) modulo n.  Raises CompileError when it
    does not fit.
    """
    count = pp * batch if sequences is None else sequences
    least = (pp - 1) * batch + 1
    if count < least:
        raise CompileError(
            f"{count} sequences on a belt of {pp} stages: use {least} or more, stages would idle"
        )
    context = buckets_up_to(context)[-1]
    groups = -(-count // max(1, batch))
    places = StagePlaces(
        spec, model.layout, model.dtype, context, groups * batch, batch, batch != 1
    )
    wiring = topology_of(model.layout.tp * pp)
    dealt = deal_stages(places, pp)
    pipeline = build_pipeline(dealt, places, Numbers.of(model.config), wiring, batch)
    programs: dict[str, list[Program]] = {}
    program_of_chip: list[int] = []
    for number in range(groups):
        entry = belt_entry(min(context, model.config.max_position), number)
        programs[entry], program_of_chip = pipeline.belt_programs(context, groups, number)
    artifact = decoder_artifact(
        pipeline, model, programs, program_of_chip, [context], groups * batch
    )
    if weights:
        artifact.memory = chip_images(pipeline, model).of(range(artifact.chips))
    return artifact


def belt_intervals(
    model: PartitionedModel, spec: ChipSpec, context: int, pp: int, sequences: int
) -> list[int]:
    """Cycles of a beat of the full belt in every bucket up to ``context``; nothing is made of it.

    sequences: whose caches the chips hold.  Raises CompileError when they do not fit.
    """
    buckets = buckets_up_to(context)
    places = StagePlaces(spec, model.layout, model.dtype, buckets[-1], sequences)
    wiring = topology_of(model.layout.tp * pp)
    pipeline = build_pipeline(deal_stages(places, pp), places, Numbers.of(model.config), wiring)
    return [pipeline.beat(bucket)[2] for bucket in buckets]


def belt_room(model: PartitionedModel, spec: ChipSpec, context: int, pp: int, most: int) -> int:
    """Sequences of ``context`` positions, ``most`` or fewer, that a compiled decoder's chips have
    caches for.  Raises CompileError where not even one fits.
    """
    context = buckets_up_to(context)[-1]
    stages = deal_stages(StagePlaces(spec, model.layout, model.dtype, context), pp)
    return sequences_that_fit(stages, model.layout, spec, model.dtype, context, most)


def decoder_artifact(
    pipeline: Pipeline,
    model: PartitionedModel,
    programs: dict[str, list[Program]],
    program_of_chip: list[int],
    buckets: list[int],
    sequences: int | None = None,
) -> Artifact:
    """The artifact of a pipeline's programs without weights; all chips have the same bindings.

    sequences: of a conveyor belt.
    """
    layout, wiring = model.layout, pipeline.topology
    places = pipeline.code[-1].places
    chips = wiring.chips
    known = wiring.name if wiring.name in TOPOLOGIES else "custom"  # part of a rack
    name = "single" if chips == 1 else f"node-{chips}" if chips <= 8 else known
    cables = [(a, x, b, y) for a, x, b, y in wiring.cables.tolist()]
    inputs = input_planes(places)
    a, mask, rows = places.attention, places.sliding, places.logit_rows
    bindings, about = Bindings(
        inputs=inputs,
        outputs={"logits": planes_of(places.logits, rows * layout.vocab_blocks)},
        decoder=DecoderFacts(
            dtype=model.dtype,
            tp=layout.tp,
            group_of_stage=tuple(pipeline.groups),
            checkpoint="" if model.checkpoint.path is None else str(model.checkpoint.path),
            sram_used_bytes=max(c.places.placement.used_bytes() for c in pipeline.code),
            buckets=tuple(buckets),
            context=min(places.context, model.config.max_position),
            mask_positions=0 if a is None else a.mask_positions,
            cache_segments=tuple(places.cache_maps),
            sequences=sequences,
            chunk=1 if places.batch else places.chunk,
            batch=places.chunk if places.batch else 1,
            every_logit=rows > 1 and not places.batch,
            window=layout.window if "sliding_map" in inputs or "sliding_masks" in inputs else 0,
            window_positions=0 if mask is None else mask.positions,
            blocks=0 if places.planes is None else places.planes.blocks,
            cached_lanes=0 if places.planes is None else layout.value_lanes,
            cached_words=() if sequences or places.planes is None else _cached_words(pipeline),
        ),
    ).header()
    return Artifact(
        spec=pipeline.spec,
        topology=name,
        chips=chips,
        cables=node_cables(chips) if chips <= 8 else cables,
        programs=programs,
        program_of_chip=program_of_chip,
        memory=[[] for _ in range(chips)],
        bindings=bindings,
        model=about,
        predicted_cycles={entry: table[0].cycles for entry, table in programs.items()},
    )


def input_planes(places: DecoderPlaces) -> dict[str, Planes]:
    """Where the host writes before a launch of a stage at ``places``, by name."""
    rope, a, planes, n = places.rope, places.attention, places.planes, places.chunk
    inputs = {
        "x": planes_of(places.x, n * places.layout.x_tiles),
        "cos": planes_of(rope.cos, n),
        "sin": planes_of(rope.sin, n),
    }
    if a is not None:
        inputs["kv_map"] = planes_of(a.kv_map, n * len(places.cache_maps))
        inputs["mask_map"] = planes_of(a.mask_map, n * -(-places.context // a.mask_positions))
    if places.second_rope is not None:
        cos, sin = places.second_rope
        inputs |= {"second_cos": planes_of(cos, n), "second_sin": planes_of(sin, n)}
    if places.sliding is not None:
        runs = -(-places.context // places.sliding.positions)
        inputs["sliding_map"] = planes_of(places.sliding.map, n * runs)
    if planes is not None:
        words = planes.words
        inputs["masks"] = planes_of(words.masks, n * planes.blocks)
        inputs["key_maps"] = planes_of(words.key_maps, n * KEY_MAPS)
        sides = (planes_of(place, n * VALUE_MAPS) for place in words.value_maps)
        inputs["value_maps"] = tuple(plane for side in sides for plane in side)
        copies = (planes_of(place, n * RECENT_MAPS) for place in words.recent_maps)
        inputs["recent_maps"] = tuple(plane for copy in copies for plane in copy)
        if planes.sliding is not None:
            inputs["sliding_masks"] = planes_of(planes.sliding, n * planes.blocks)
    return inputs


def _cached_words(pipeline: Pipeline) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The first words of values on planes 0 to 3 and of recent ones on planes 2 and 3, of every
    attention block and cached tile of each stage.
    """
    stages = []
    for code in pipeline.code:
        places = code.places
        rows = []
        for number, variant in enumerate(places.variant_of):
            m = places.variants[variant]
            if isinstance(m, AttentionMatrices):
                bases = places.bases[0][number]
                for tile in m.cached:
                    row = []
                    for place in (*tile.values[0], *tile.values[1], *tile.recent):
                        assert place.symbol is not None
                        row.append(bases[place.symbol] + place.address)
                    rows.append(tuple(row))
        stages.append(tuple(rows))
    return tuple(stages)


def chip_images(pipeline: Pipeline, model: PartitionedModel) -> ChipImages:
    """How to make what the chips of a pipeline hold before the first launch."""
    groups = pipeline.topology.chips // model.layout.tp
    codes: list[tuple[DecoderPlaces, Stage] | None] = [None] * groups
    for number, group in enumerate(pipeline.groups):
        codes[group] = pipeline.code[number].places, pipeline.stages[number]
    return ChipImages(model, tuple(codes))


def join_images(artifact: Artifact) -> None:
    """Make one piece of neighbouring pieces of the memory images, in place.

    The compiler emits thousands of pieces of a few words, and a file's header lists every piece.
    """
    for chip, image in enumerate(artifact.memory):
        runs: list[Image] = []
        for piece in sorted(image, key=lambda piece: piece[:2]):
            last = runs[-1][-1] if runs else (-1, 0, piece[2])
            if (last[0], last[1] + len(last[2])) == piece[:2]:
                runs[-1].append(piece)
            else:
                runs.append([piece])
        artifact.memory[chip] = [
            (run[0][0], run[0][1], np.concatenate([rows for _, _, rows in run])) for run in runs
        ]
