"""The host side of a compiled decoder: what is DMA'd in before a launch and read out after it.

Inputs of a launch: the token's embedding on its lanes, the rope rows of its position, and the two
maps that make the position data (the KV word to Scatter to, the window of the mask table).  Their
cost follows the chip's PCIe model and is charged to virtual seconds, never to cycles per token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from programs.artifact import Artifact
from programs.decoder.entries import entry_at
from programs.decoder.lanes import Layout
from programs.decoder.partition import PartitionedModel
from programs.models import load_checkpoint
from programs.sram import fp32_rows

F32 = NDArray[np.float32]


class Host:
    """Feeds the chips of one artifact and reads their logits."""

    def __init__(self, artifact: Artifact, model: PartitionedModel | None = None) -> None:
        """``model``: the partitioned model, else it is read from the artifact's checkpoint."""
        if model is None:
            checkpoint = load_checkpoint(artifact.model["checkpoint"])
            layout = Layout.of(checkpoint.config, artifact.model["tp"])
            model = PartitionedModel(checkpoint, layout, artifact.model["dtype"])
        self.model = model
        self.artifact = artifact
        self.virtual_io_seconds = 0.0

    def stage_of(self, chip: int) -> int:
        """The pipeline stage of a chip, -1 for one that no stage is on."""
        groups = self.artifact.model["group_of_stage"]
        group = chip // self.model.layout.tp
        return groups.index(group) if group in groups else -1

    def prepare(self, chip: Chip, token: int, position: int) -> None:
        """Write the inputs of the launch for ``token`` at ``position`` into a chip's SRAM.

        The embedding goes to the first stage only.
        """
        stage = self.stage_of(chip.chip_id)
        if stage < 0:
            return
        inputs = self.artifact.bindings["inputs"]
        cos, sin = self.model.rope_rows(position)
        bytes_moved = 0
        words = [("cos", cos[None]), ("sin", sin[None])]
        if stage == 0:
            words.append(("x", self.model.embedding(token)))
        for name, values in words:
            for (queue, address, _), plane in zip(inputs[name], fp32_rows(values), strict=True):
                chip.write_words(queue, address, plane)
                bytes_moved += plane.size
        maps = (("kv_map", self._cache_words(position)), ("mask_map", self._mask_offsets(position)))
        for name, offsets in maps:
            for byte, (queue, address, _) in enumerate(inputs[name]):
                rows = np.full((len(offsets), 320), 0xFF, np.uint8)
                rows[:, ::16] = (np.array(offsets)[:, None] >> (8 * byte)) & 0xFF
                chip.write_words(queue, address, rows)
                bytes_moved += rows.size
        if stage == 0 and chip.chip_id % self.model.layout.tp == 0:
            self._charge(bytes_moved)

    def _cache_words(self, position: int) -> list[int]:
        """The word of each segment that takes the new key: the spare one but where it lies."""
        words = []
        bindings = self.artifact.bindings
        for first, positions in bindings.get("cache_segments", [[0, bindings["context"]]]):
            here = first <= position < first + positions
            words.append(position - first if here else int(positions))
        return words

    def _mask_offsets(self, position: int) -> list[int]:
        """Where each window of the mask begins in the table: zeros, then minus infinities."""
        window = int(self.artifact.bindings["mask_positions"])
        context = int(self.artifact.bindings["context"])
        starts = range(0, context, window)
        return [min(max(window - 1 - (position - first), 0), window) for first in starts]

    def read_logits(self, chip: Chip) -> F32:
        """The chip's slice of the vocabulary, float32 [tokens it holds]; none before the end."""
        outputs = self.artifact.bindings["outputs"]["logits"]
        stage, local = self.stage_of(chip.chip_id), chip.chip_id % self.model.layout.tp
        if stage == 0 and local == 0:  # beside the inputs, so that one process charges both
            self._charge(4 * 320 * outputs[0][2])
        if stage != self.artifact.model["pp"] - 1:
            return np.zeros(0, np.float32)
        planes = [
            chip.read_words(queue, address, words)
            for queue, address, words in outputs
        ]
        values = np.ascontiguousarray(np.moveaxis(np.stack(planes), 0, -1)).view(np.float32)[..., 0]
        axis = self.model.layout.vocab_axis(local)
        return np.asarray(values[axis >= 0], np.float32)

    def _charge(self, bytes_moved: int) -> None:
        spec = self.artifact.spec
        self.virtual_io_seconds += spec.pcie_latency_s + bytes_moved / spec.pcie_bytes_per_s

    def entry(self, position: int, prefill: bool) -> str:
        """See ``entry_at``."""
        return entry_at(self.artifact, position, prefill)


def pick_token(logits: F32, temperature: float, seed: int, step: int) -> int:
    """Greedy (temperature 0; lowest id among equals) or a seeded draw keyed by (seed, step)."""
    if temperature <= 0.0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    total = np.cumsum(weights / weights.sum())
    draw = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), step])).random()
    return min(int(np.searchsorted(total, draw, side="right")), len(logits) - 1)
