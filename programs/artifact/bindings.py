"""What an artifact's words are for: inputs, outputs, and what a compiled decoder says of itself.

The header of a file holds this as plain data in its fields ``bindings`` and ``model``; it is
written and read here only (which line of which file a block comes from: ``sources``).  Reading
trusts nothing: what does not have its form is refused in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chip.isa import LANES, LANES_PER_SUPERLANE, SLICES
from chip.scheduling import Place
from programs.artifact.file import Artifact
from programs.artifact.header import ArtifactError

__all__ = [
    "MOST_CHUNK",
    "OUTPUT_TYPES",
    "Bindings",
    "DecoderFacts",
    "Planes",
    "compiled_at",
    "decoder_of",
    "planes_of",
]

Planes = tuple[tuple[int, int, int], ...]
"""(slice, first word, words) of every byte plane."""

#: What an output's 32 bits may be, by the name that the header's ``output_types`` has for it.
OUTPUT_TYPES = {"f32": "float32", "i32": "int32"}
#: Tokens of a chunk at most: positions of a decoder's shortest bucket.
MOST_CHUNK = 64
#: Byte planes of an output, which holds words of four bytes.
OUTPUT_PLANES = 4
_INPUTS = frozenset({"x", "cos", "sin"})
#: Of attention on the VXM, on the planes, and of each what layers with a sliding window need.
_ON_VXM = frozenset({"kv_map", "mask_map"}), frozenset({"sliding_map"})
_ON_PLANES = (
    frozenset({"masks", "key_maps", "value_maps", "recent_maps"}),
    frozenset({"sliding_masks"}),
)
#: Byte planes of the inputs of attention on the planes.
_MAP_PLANES = {"key_maps": 2, "value_maps": 4, "recent_maps": 4, "masks": 1, "sliding_masks": 1}
#: First words of a cached tile that ``cached_words`` has.
_CACHED_WORDS = 6
#: Lanes of a tile that count positions, so no value is on them.
_COUNTING = 16


@dataclass(frozen=True)
class DecoderFacts:
    """What a compiled decoder says of itself.

    buckets: positions that programs are made for, ascending, the last those the KV cache holds;
    context: those that a sequence may have, fewer where the model was made for fewer.
    mask_positions: of one window of the mask; cache_segments: (first position, positions) of each
    word of ``kv_map``.  group_of_stage: which group of ``tp`` chips each pipeline stage is on.
    checkpoint: the directory it was compiled from, empty for a model in none.  sequences: of a
    conveyor belt, else None.  chunk: tokens of one that a launch may have; batch: sequences that a
    launch has a token of, all with logits.  Every input is there ``rows`` times.  every_logit: the
    last launch of a chunked prompt gives those of each of its tokens.  window: positions that
    layers with a sliding window attend to, and window_positions: of one run of their mask; 0 where
    none is shorter than the context.

    On the planes instead: blocks: of 320 positions that the caches hold, 0 on the VXM;
    cached_lanes: of a cached tile's values; cached_words: for each stage, of each attention block
    and cached tile, the first words of values on planes 0 to 3 and of recent ones on planes 2 and
    3, empty where sequences never step back.
    """

    dtype: str
    tp: int
    group_of_stage: tuple[int, ...]
    checkpoint: str
    sram_used_bytes: int
    buckets: tuple[int, ...]
    context: int
    mask_positions: int
    cache_segments: tuple[tuple[int, int], ...]
    sequences: int | None = None
    chunk: int = 1
    batch: int = 1
    every_logit: bool = False
    window: int = 0
    window_positions: int = 0
    blocks: int = 0
    cached_lanes: int = 0
    cached_words: tuple[tuple[tuple[int, ...], ...], ...] = ()

    @property
    def pp(self) -> int:
        """Pipeline stages."""
        return len(self.group_of_stage)

    @property
    def rows(self) -> int:
        """Tokens that a launch has at most, of one sequence or of several."""
        return max(self.chunk, self.batch)

    @property
    def logit_rows(self) -> int:
        """Tokens of a launch that may have logits."""
        return self.chunk if self.every_logit else self.batch


@dataclass(frozen=True)
class Bindings:
    """Where the host's words lie, by name; ``decoder``: None for what is no compiled decoder.

    types: NumPy's name for the outputs that are not float32.  sram_used_bytes: of the fullest chip;
    layer_cycles: of one layer of an encoder; product_cycles: of a chip's product before sums over
    chips; None where the artifact does not say.
    """

    inputs: Mapping[str, Planes] = field(default_factory=dict)
    outputs: Mapping[str, Planes] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    decoder: DecoderFacts | None = None
    sram_used_bytes: int | None = None
    layer_cycles: int | None = None
    product_cycles: int | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> Bindings:
        """The bindings of ``artifact``.

        Raises ArtifactError with one line for places that are not in SRAM and types there are not.
        """
        names = ("sram_used_bytes", "layer_cycles", "product_cycles")
        used, layer, product = (
            value if type(value := artifact.model.get(name)) is int else None for name in names
        )
        return cls(
            inputs=_places(artifact, "input"),
            outputs=(outputs := _places(artifact, "output")),
            types=_types(artifact, outputs),
            decoder=_decoder(artifact),
            sram_used_bytes=used,
            layer_cycles=layer,
            product_cycles=product,
        )

    def header(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The plain data of the fields ``bindings`` and ``model`` of a decoder's artifact."""
        facts = self.decoder
        assert facts is not None
        bindings = {
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "buckets": facts.buckets,
            "context": facts.context,
        }
        if facts.blocks:
            bindings["blocks"] = facts.blocks
            bindings["cached_lanes"] = facts.cached_lanes
            bindings["cached_words"] = facts.cached_words
        else:
            bindings["mask_positions"] = facts.mask_positions
            bindings["cache_segments"] = facts.cache_segments
        model: dict[str, Any] = {
            "dtype": facts.dtype,
            "tp": facts.tp,
            "pp": facts.pp,
            "group_of_stage": facts.group_of_stage,
            "checkpoint": facts.checkpoint,
            "sram_used_bytes": facts.sram_used_bytes,
        }
        if facts.sequences is not None:
            model["sequences"] = facts.sequences
        if facts.chunk > 1:
            model["chunk"] = facts.chunk
        if facts.batch > 1:
            model["batch"] = facts.batch
        if facts.every_logit:
            model["every_logit"] = True
        if facts.window:
            bindings["sliding_window"] = facts.window
            if not facts.blocks:
                bindings["sliding_positions"] = facts.window_positions
        return bindings, model


def planes_of(place: Place, words: int) -> Planes:
    """The byte planes of ``words`` words at ``place``."""
    return tuple((int(queue), int(place.address), int(words)) for queue in place.queues)


def decoder_of(artifact: Artifact) -> DecoderFacts:
    """What a compiled decoder says of itself; raises ArtifactError for any other artifact."""
    facts = _decoder(artifact)
    if facts is None:
        raise ArtifactError("the artifact is no compiled decoder: compile one with lpu compile")
    return facts


def compiled_at(artifact: Artifact, checkpoint: str, context: int | None = None) -> Artifact:
    """``artifact`` as if compiled from the directory ``checkpoint``.

    context: positions that a sequence may have; None: as many as it says.
    """
    bindings = artifact.bindings if context is None else {**artifact.bindings, "context": context}
    model = {**artifact.model, "checkpoint": checkpoint}
    return replace(artifact, model=model, bindings=bindings)


def _places(artifact: Artifact, kind: str) -> dict[str, Planes]:
    """The inputs or outputs of a header, checked; all planes of one are as long."""
    named = artifact.bindings.get(f"{kind}s", {})
    number = "" if kind == "input" else "four "
    found: dict[str, Planes] = {}
    for name, planes in named.items() if isinstance(named, dict) else [("", named)]:
        try:
            own = tuple((slice_, first, n) for slice_, first, n in map(_integers, planes))
        except (TypeError, ValueError):
            own = ()
        words = artifact.spec.words_per_slice
        fits = len(own) == OUTPUT_PLANES if kind == "output" else len(own) > 0
        for slice_, first, n in own:
            fits = fits and 0 <= slice_ < SLICES and first >= 0 and 1 <= n == own[0][2]
            fits = fits and first + n <= words
        if not fits:
            raise ArtifactError(
                f"{kind} {name!r} is not {number}places [slice, word, words] in SRAM; "
                "compile it again"
            )
        found[name] = own
    return found


def _types(artifact: Artifact, outputs: Iterable[str]) -> dict[str, str]:
    """The types that a header names, of outputs there are."""
    named = artifact.bindings.get("output_types", {})
    found: dict[str, str] = {}
    for name in outputs:
        asked = named.get(name, "f32") if isinstance(named, dict) else ""
        if not isinstance(asked, str) or asked not in OUTPUT_TYPES:
            raise ArtifactError(
                f"output {name!r} is of no type {', '.join(OUTPUT_TYPES)}; make it again"
            )
        if asked != "f32":
            found[name] = OUTPUT_TYPES[asked]
    return found


def _decoder(artifact: Artifact) -> DecoderFacts | None:
    """The facts of a compiled decoder; None where one is missing or has another form."""
    bindings, model = artifact.bindings, artifact.model
    try:
        context = _count(bindings["context"])
        planes, sliding = "blocks" in bindings, "sliding_window" in bindings
        segments = () if planes else bindings.get("cache_segments", [[0, context]])
        facts = DecoderFacts(
            dtype=_text(model["dtype"]),
            tp=_count(model["tp"]),
            group_of_stage=_integers(model["group_of_stage"]),
            checkpoint=_text(model["checkpoint"]),
            sram_used_bytes=_count(model["sram_used_bytes"]),
            buckets=_integers(bindings["buckets"]),
            context=context,
            mask_positions=0 if planes else _count(bindings["mask_positions"]),
            cache_segments=tuple((first, words) for first, words in map(_integers, segments)),
            sequences=None if "sequences" not in model else _count(model["sequences"]),
            chunk=_chunk(model.get("chunk", 1)),
            batch=_chunk(model.get("batch", 1)),
            every_logit=model.get("every_logit") is True,
            window=_count(bindings["sliding_window"]) if sliding else 0,
            window_positions=(
                _count(bindings["sliding_positions"]) if sliding and not planes else 0
            ),
            blocks=_count(bindings["blocks"]) if planes else 0,
            cached_lanes=_count(bindings["cached_lanes"]) if planes else 0,
            cached_words=_cached_words(bindings["cached_words"]) if planes else (),
        )
        always, windows = _ON_PLANES if planes else _ON_VXM
        needed = _INPUTS | always | (windows if sliding else frozenset())
        whole = bindings["inputs"].keys() >= needed and "logits" in bindings["outputs"]
        every = (planes for name, planes in bindings["inputs"].items() if name in needed)
        whole = whole and all(words % facts.rows == 0 for own in every for _, _, words in own)
        whole = whole and all(
            n % facts.logit_rows == 0 for _, _, n in bindings["outputs"]["logits"]
        )
        whole = whole and (facts.batch == 1 or facts.sequences is not None)
        whole = whole and (facts.sequences or 0) % facts.batch == 0
        if planes:
            words = artifact.spec.words_per_slice
            whole = whole and _on_planes(facts, bindings["inputs"], words)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    return facts if whole and facts.group_of_stage and min(facts.buckets, default=0) > 0 else None


def _on_planes(facts: DecoderFacts, inputs: Mapping[str, Any], words: int) -> bool:
    """Whether the facts of attention on the planes fit each other and slices of ``words`` words."""
    lanes, blocks = facts.cached_lanes, facts.blocks
    if lanes % LANES_PER_SUPERLANE or lanes > LANES - _COUNTING:
        return False
    for name, count in _MAP_PLANES.items():
        if name in inputs and len(inputs[name]) != count:
            return False
        if name in inputs and name.endswith("masks") and inputs[name][0][2] != blocks * facts.rows:
            return False
    each = lanes // LANES_PER_SUPERLANE
    west, east = each * (blocks // 2), each * (blocks - blocks // 2)
    sizes = (west, west, east, east, each, each)
    if len(facts.cached_words) != (facts.pp if facts.sequences is None else 0):
        return False
    rows = (row for stage in facts.cached_words for row in stage)
    return all(first + n <= words for row in rows for first, n in zip(row, sizes, strict=True))


def _cached_words(value: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Six integers of each tile, by stage; ValueError or TypeError otherwise."""
    stages = tuple(tuple(_integers(row) for row in stage) for stage in value)
    if any(len(row) != _CACHED_WORDS or min(row) < 0 for stage in stages for row in stage):
        raise ValueError
    return stages


def _count(value: Any) -> int:
    """``value``, which is an integer of 1 or more; ValueError otherwise."""
    if type(value) is not int or value < 1:
        raise ValueError
    return value


def _chunk(value: Any) -> int:
    """``value``, which is a number of tokens that a launch may have; ValueError otherwise."""
    if _count(value) > MOST_CHUNK:
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    """``value``, which is text; ValueError otherwise."""
    if type(value) is not str:
        raise ValueError
    return value


def _integers(value: Any) -> tuple[int, ...]:
    """``value``, which is a list of integers; ValueError otherwise."""
    if not isinstance(value, list | tuple) or any(type(item) is not int for item in value):
        raise ValueError
    return tuple(value)
