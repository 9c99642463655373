"""What conversions saturated in a run, by layer and kind: what chips counted, put together.

Chips count by the parts of their programs (``chip.program.part_of_blocks``).  In a decoder a part
is the attention or the FFN of a layer, or the head; a part that appends to the KV cache begins a
layer, and the last part of all is the head.  Stages follow each other as the artifact names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chip.engine import Chip
from chip.isa import Op
from chip.program import counter_of_blocks, part_of_blocks, tagged_part
from chip.saturation import INT8, KINDS
from programs.artifact import Artifact, Bindings

#: Counts by layer, then by kind (``chip.saturation.KINDS``); only those that are not 0.
Saturations = dict[str, dict[str, int]]
#: The layer of the final norm and the logits; the one of programs that have no layers.
HEAD, NO_LAYER = "head", ""


def saturations_of(artifact: Artifact, chips: Sequence[Chip]) -> Saturations:
    """What ``chips`` of ``artifact`` counted in all launches so far.

    The int8 results of a network are left out: their range is the ReLU, so they saturate by
    definition.
    """
    if not any(chip.saturated.any() for chip in chips):
        return {}
    layers = _layers(artifact)
    meant = {INT8} if "layer_ends" in artifact.model else set()
    found: Saturations = {}
    for chip in chips:
        names = layers.get(chip.chip_id, [])
        for part, counts in enumerate(chip.saturated.tolist()):
            for kind, count in enumerate(counts):
                if count and kind not in meant:
                    layer = names[part] if part < len(names) else NO_LAYER
                    own = found.setdefault(layer, {})
                    own[KINDS[kind]] = own.get(KINDS[kind], 0) + count
    return joined_saturations([found])


def joined_saturations(parts: Iterable[Saturations]) -> Saturations:
    """The sums of all ``parts``, layers in order, the head last."""
    sums: Saturations = {}
    for part in parts:
        for layer, counts in part.items():
            own = sums.setdefault(layer, {})
            for kind, count in counts.items():
                own[kind] = own.get(kind, 0) + count
    return {
        layer: {kind: sums[layer][kind] for kind in KINDS if kind in sums[layer]}
        for layer in sorted(sums, key=lambda name: (name == HEAD, len(name), name))
    }


def saturation_totals(found: Saturations) -> dict[str, int]:
    """By kind, over all layers; every kind is there."""
    return {kind: sum(own.get(kind, 0) for own in found.values()) for kind in KINDS}


def saturation_json(found: Saturations) -> dict[str, object]:
    """The object ``saturations`` of a command's JSON: counts by kind, and ``layers``."""
    return {**saturation_totals(found), "layers": {k: v for k, v in found.items() if k}}


def saturation_text(found: Saturations) -> str:
    """In words, for people: kinds, counts, the first layer; empty when there were none."""
    kinds = ", ".join(f"{n:,} to {kind}" for kind, n in saturation_totals(found).items() if n)
    first = next(iter(found), NO_LAYER)
    where = "in the head" if first == HEAD else f"first in layer {first}"
    return f"{kinds}, {where}" if first else kinds


def _layers(artifact: Artifact) -> dict[int, list[str]]:
    """The layer of every part of each chip's programs; empty for what is no decoder."""
    facts = Bindings.of(artifact).decoder
    if facts is None:
        return {}
    found: dict[int, list[str]] = {}
    layer = -1
    for stage, group in enumerate(facts.group_of_stage):
        chips = range(group * facts.tp, (group + 1) * facts.tp)
        tables = [artifact.program(entry, chips[0]).blocks for entry in artifact.programs]
        starts = {
            part for blocks in tables for part in tagged_part(blocks)[blocks["op"] == Op.SCATTER]
        }
        last = max(
            int(part_of_blocks(blocks)[counter_of_blocks(blocks) >= 0].max(initial=-1))
            for blocks in tables
        )
        names = []
        for part in range(last + 1):
            layer += part in starts
            names.append(str(layer))
        if names and stage == facts.pp - 1:
            names[-1] = HEAD
        found.update(dict.fromkeys(chips, names))
    return found
