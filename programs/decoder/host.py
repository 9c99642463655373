"""The host side of a compiled decoder: what is DMA'd in before a launch and read out after it.

Inputs of a launch: the token's embedding on its lanes, the rope rows of its position, and the
maps that make the position data (the KV word to Scatter to, the windows of mask tables).  Their
cost follows the chip's PCIe model and is charged to virtual seconds, never to cycles per token.

Here, too, is which entry point a launch runs, and with which checkpoint an artifact belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from programs.artifact import Artifact, ArtifactError, Bindings, compiled_at, decoder_of
from programs.decoder.lanes import Layout
from programs.decoder.partition import PartitionedModel
from programs.decoder.places import RECENT_MAPS
from programs.decoder.plane_words import launch_words, restore_recent
from programs.models import Checkpoint, load_checkpoint
from programs.sram import SramPlacement, fp32_rows

F32 = NDArray[np.float32]
Rows = NDArray[np.uint8]
TURNS = ("cos", "sin")


class Host:
    """Feeds the chips of one artifact and reads their logits."""

    def __init__(self, artifact: Artifact, model: PartitionedModel | None = None) -> None:
        """``model``: the partitioned model, else it is read from the artifact's checkpoint."""
        self._facts, self._bindings = decoder_of(artifact), Bindings.of(artifact)
        if model is None:
            checkpoint = load_checkpoint(self._facts.checkpoint)
            layout = Layout.of(checkpoint.config, self._facts.tp)
            model = PartitionedModel(checkpoint, layout, self._facts.dtype)
        self.model = model
        self.artifact = artifact
        self._placement = SramPlacement(artifact.spec)
        self.begin()

    def begin(self) -> None:
        """As before the first launch: nothing is charged, and nothing known of the chips."""
        self.virtual_io_seconds = 0.0
        self._group_of: dict[int, int] = {}
        self._tokens = 1  # of the launch that was prepared last

    def stage_of(self, chip: int) -> int:
        """The pipeline stage of a chip, -1 for one that no stage is on."""
        groups = self._facts.group_of_stage
        group = chip // self.model.layout.tp
        return groups.index(group) if group in groups else -1

    def prepare(self, chip: Chip, token: int, position: int) -> None:
        """Write the inputs of the launch for ``token`` at ``position`` into a chip's SRAM.

        The embedding goes to the first stage only.
        """
        self.prepare_chunk(chip, (token,), position)

    def prepare_chunk(self, chip: Chip, tokens: Sequence[int], position: int) -> None:
        """As ``prepare``, of ``tokens`` from ``position`` on in one launch."""
        self._tokens = len(tokens)
        stage = self.stage_of(chip.chip_id)
        if stage < 0:
            return
        moved = (
            self._restore_recent(chip, stage, position, len(tokens)) if self._facts.blocks else 0
        )
        for number, token in enumerate(tokens):
            moved += self._prepare_token(chip, stage, number, token, position + number)
        if stage == 0 and chip.chip_id % self.model.layout.tp == 0:
            self._charge(moved)

    def prepare_batch(self, chip: Chip, rows: Sequence[tuple[int | None, int]]) -> None:
        """As ``prepare``, of a token and its position for each sequence of a batch.

        token: None where a sequence has none now; what is computed of it then is of zeros, and
        its place in the caches must be written over before anybody sees it.
        """
        stage = self.stage_of(chip.chip_id)
        if stage < 0:
            return
        moved = 0
        for number, (token, position) in enumerate(rows):
            moved += self._prepare_token(chip, stage, number, token, position)
        if stage == 0 and chip.chip_id % self.model.layout.tp == 0:
            self._charge(moved)

    def took_over(self, chip: Chip, position: int, tokens: int) -> None:
        """The last launch of ``chip`` fed ``tokens`` from ``position`` on, whoever was its host.

        What the next one costs depends on it: a step back is charged whoever takes it.
        """
        self._group_of[chip.chip_id] = (position + tokens - 1) // RECENT_MAPS

    def _prepare_token(
        self, chip: Chip, stage: int, number: int, token: int | None, position: int
    ) -> int:
        """Write the inputs of token ``number`` of a launch; the bytes moved.  None: zeros."""
        bytes_moved = 0
        words = []
        for table, turns in zip(("", "second_"), self.model.rope_rows(position), strict=False):
            words += [(f"{table}{name}", row[None]) for name, row in zip(TURNS, turns, strict=True)]
        if stage == 0:
            x = self.model.embedding(token or 0)
            words.append(("x", x if token is not None else np.zeros_like(x)))
        for name, values in words:
            bytes_moved += self._write(chip, name, number, list(fp32_rows(values)))
        if self._facts.blocks:
            facts = self._facts
            mapped = launch_words(position, facts.blocks, facts.cached_lanes, facts.window)
            for name, planes in mapped.items():
                bytes_moved += self._write(chip, name, number, list(planes))
            return bytes_moved
        for name, offsets in self._maps(position):
            rows = np.full((2, len(offsets), 320), 0xFF, np.uint8)
            for byte in range(2):
                rows[byte, :, ::16] = (np.array(offsets)[:, None] >> (8 * byte)) & 0xFF
            bytes_moved += self._write(chip, name, number, list(rows))
        return bytes_moved

    def _write(self, chip: Chip, name: str, number: int, planes: Sequence[Rows]) -> int:
        """Write an input of token ``number`` of a launch, uint8 [words, 320] a slice; the bytes."""
        for (queue, address, words), rows in zip(self._bindings.inputs[name], planes, strict=True):
            chip.write_words(queue, address + number * (words // self._facts.rows), rows)
        return sum(rows.size for rows in planes)

    def _restore_recent(self, chip: Chip, stage: int, position: int, tokens: int) -> int:
        """Recent values beside ``position`` after a step back; the bytes moved.

        tokens: of the launch that is prepared.
        """
        facts = self._facts
        group, beside = divmod(position, RECENT_MAPS)
        before = self._group_of.get(chip.chip_id)
        self.took_over(chip, position, tokens)
        if facts.cached_words and group != before and beside:
            own, lanes = facts.cached_words[stage], facts.cached_lanes
            moved = restore_recent(chip, self._placement, own, position, lanes)
            return 0 if before is None else moved  # what no launch fed has nothing to move
        return 0

    def _maps(self, position: int) -> list[tuple[str, list[int]]]:
        """The maps of attention on the VXM, by name."""
        maps = [("kv_map", self._cache_words(position)), ("mask_map", self._mask_offsets(position))]
        if self._facts.window:
            maps.append(("sliding_map", self._sliding_offsets(position)))
        return maps

    def _cache_words(self, position: int) -> list[int]:
        """The word of each segment that takes the new key: the spare one but where it lies."""
        words = []
        for first, positions in self._facts.cache_segments:
            here = first <= position < first + positions
            words.append(position - first if here else positions)
        return words

    def _mask_offsets(self, position: int) -> list[int]:
        """Where each window of the mask begins in the table: zeros, then minus infinities."""
        window = self._facts.mask_positions
        starts = range(0, self._facts.buckets[-1], window)
        return [min(max(window - 1 - (position - first), 0), window) for first in starts]

    def _sliding_offsets(self, position: int) -> list[int]:
        """Where each run of the mask of a sliding window begins in its table.

        The table: minus infinities, zeros, minus infinities (see ``SlidingMask``).
        """
        run, window = self._facts.window_positions, self._facts.window
        zeros, oldest = min(run, window), position - window + 1
        offsets = []
        for first in range(0, self._facts.buckets[-1], run):
            if oldest > first:  # the window begins in this run, or behind it
                offsets.append(max(run - (oldest - first), 0))
            else:  # it ends in this run, behind it, or was over before
                offsets.append(min(max(run + zeros - 1 - (position - first), run), run + zeros))
        return offsets

    def read_logits(self, chip: Chip) -> F32:
        """The chip's slice of the vocabulary, float32 [tokens it holds]; none before the end.

        After a chunk, those of its last token.
        """
        last = self._tokens - 1 if self._facts.every_logit else 0
        row: F32 = self._read(chip, last, 1)[0]
        return row

    def read_rows(self, chip: Chip, count: int | None = None) -> F32:
        """As ``read_logits``, of the first ``count`` tokens of a launch that may have logits (None:
        of all), float32 [count, tokens it holds]: of each sequence of a batch, or of each token of
        a last chunk.
        """
        return self._read(chip, 0, self._facts.logit_rows if count is None else count)

    def _read(self, chip: Chip, first: int, count: int) -> F32:
        """Rows of logits; those alone are charged."""
        outputs = self._bindings.outputs["logits"]
        each = outputs[0][2] // self._facts.logit_rows
        stage, local = self.stage_of(chip.chip_id), chip.chip_id % self.model.layout.tp
        if stage == 0 and local == 0:  # beside the inputs, so that one process charges both
            self._charge(4 * 320 * count * each)
        if stage != self._facts.pp - 1:
            return np.zeros((count, 0), np.float32)
        planes = [
            chip.read_words(queue, address + first * each, count * each)
            for queue, address, _ in outputs
        ]
        values = np.ascontiguousarray(np.moveaxis(np.stack(planes), 0, -1)).view(np.float32)[..., 0]
        axis = self.model.layout.vocab_axis(local)
        rows = values.reshape(count, *axis.shape)
        return np.asarray(rows[:, axis >= 0], np.float32)

    def _charge(self, bytes_moved: int) -> None:
        spec = self.artifact.spec
        self.virtual_io_seconds += spec.pcie_latency_s + bytes_moved / spec.pcie_bytes_per_s

    def entry(self, position: int, prefill: bool) -> str:
        """See ``entry_at``."""
        return entry_at(self.artifact, position, prefill)


def token_entry(context: int, prefill: bool) -> str:
    """The program of a token among ``context`` positions; a prefill ends without logits."""
    return f"{'prefill' if prefill else 'decode'}-{context}"


def prompt_entry(context: int, end: bool) -> str:
    """The program of a beat of one prompt's tokens among ``context`` positions.

    end: of the beat after it, in which the last stage alone makes the logits.
    """
    return f"prompt-{context}{'-end' if end else ''}"


def chunk_entry(context: int, end: bool, together: bool = False) -> str:
    """The program of a chunk of a prompt's tokens among ``context`` positions.

    end: with the logits of its last token.  together: of a beat in which every stage has another
    chunk, and of the beat after it as ``prompt_entry``.
    """
    return f"{'chunks' if together else 'chunk'}-{context}{'-end' if end else ''}"


def ends_prompt(entry: str) -> bool:
    """Whether a launch gives the first token after a prompt otherwise than the next ones."""
    return entry.endswith("-end")


def belt_entry(context: int, number: int) -> str:
    """The program of beats of ``number`` modulo the belt's sequences."""
    return f"belt-{context}-{number}"


def bucket_at(artifact: Artifact, position: int) -> int:
    """The context whose programs a token at ``position`` takes; ValueError beyond the last."""
    facts = decoder_of(artifact)
    for bucket in facts.buckets:
        if position < min(bucket, facts.context):
            return bucket
    raise ValueError(
        f"position {position}: the artifact was compiled for {facts.context} positions; "
        "compile with a longer --context"
    )


def entry_at(artifact: Artifact, position: int, prefill: bool) -> str:
    """The entry point for a token at ``position``; raises ValueError beyond the context."""
    return token_entry(bucket_at(artifact, position), prefill)


def home_of(artifact: Artifact) -> Path:
    """The checkpoint directory that an artifact was compiled from.

    Raises ArtifactError where it names none.
    """
    facts = Bindings.of(artifact).decoder
    if facts is None or not facts.checkpoint:
        raise ArtifactError("the artifact names no checkpoint: name its directory with --model")
    return Path(facts.checkpoint)


def adopt(artifact: Artifact, checkpoint: Checkpoint, positions: int) -> Artifact:
    """``artifact`` with ``checkpoint`` for its embeddings, if the two belong together.

    It has no more positions than the model was made for: files of before say those of its caches.
    Raises ArtifactError where they do not, or ``positions`` are more than it was compiled for.
    """
    facts, bindings = decoder_of(artifact), Bindings.of(artifact)
    layout = Layout.of(checkpoint.config, facts.tp)
    sizes = bindings.inputs["x"][0][2], bindings.outputs["logits"][0][2]
    if sizes != (facts.rows * layout.x_tiles, facts.logit_rows * layout.vocab_blocks):
        raise ArtifactError(
            f"the artifact was not compiled from {checkpoint.path}: name its model with --model"
        )
    context = min(facts.context, checkpoint.config.max_position)
    if positions > context:
        raise ArtifactError(
            f"{positions} positions asked for, but the artifact was compiled for {context}; "
            "shorten the prompt, lower --max-new-tokens, or compile with a longer --context"
        )
    return compiled_at(artifact, str(checkpoint.path), context)


def pick_token(logits: F32, temperature: float, seed: int, step: int) -> int:
    """Greedy (temperature 0; lowest id among equals) or a seeded draw keyed by (seed, step)."""
    if temperature <= 0.0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    total = np.cumsum(weights / weights.sum())
    draw = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), step])).random()
    return min(int(np.searchsorted(total, draw, side="right")), len(logits) - 1)
