"""Every process reads of a checkpoint what its own chips hold, and nothing else."""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.spec import ChipSpec
from programs.decoder import ATTENTION, compile_decoder, partition_model
from programs.decoder.compiler import compile_apart
from programs.decoder.stages import FFN
from programs.models import Checkpoint, ModelConfig, load_checkpoint, random_checkpoint
from programs.models.tensors import TensorSource
from programs.sram import Image, image_digest
from tests import ROOT, examples

CONFIG = ModelConfig(
    hidden_size=96, layers=4, heads=4, kv_heads=2, head_dim=24, ffn=200, vocab=300, tied=False
)
SHIPPED = ROOT / "programs" / "checkpoints" / "target"


@dataclass
class Recorder:
    """Counts how often each element of a matrix is read through it."""

    source: TensorSource
    reads: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def read(
        self, name: str, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        if name not in self.reads:
            self.reads[name] = np.zeros(self.source.read(name, None, None).shape, np.int64)
        seen = self.reads[name]
        if rows is None or seen.ndim == 1:
            seen += 1
        else:
            seen[np.ix_(rows, np.arange(seen.shape[1]) if columns is None else columns)] += 1
        return self.source.read(name, rows, columns)


def _same(a: list[Image], b: list[Image]) -> bool:
    return [image_digest(image) for image in a] == [image_digest(image) for image in b]


@pytest.mark.long
@pytest.mark.parametrize(("tp", "pp"), [(1, 4), (1, 8), (2, 2), (2, 4), (4, 1)])
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.cases(4)
def test_chips_read_their_own_slices(tp: int, pp: int, dtype: str) -> None:
    checkpoint = random_checkpoint(CONFIG, 3)
    recorders: dict[int, Recorder] = {}
    images: list[Image] = []
    for chip in range(tp * pp):
        recorders[chip] = Recorder(checkpoint.source)
        model = partition_model(Checkpoint(CONFIG, recorders[chip]), tp, dtype)
        _, how = compile_apart(model, ChipSpec(), 64, pp=pp)
        assert not recorders[chip].reads, "compiling reads no weight"
        images.append(how.image(chip))
    whole = compile_decoder(partition_model(checkpoint, tp, dtype), ChipSpec(), 64, pp=pp)
    assert _same(images, whole.memory)
    for chip, recorder in recorders.items():
        code = how.codes[chip // tp]
        assert code is not None
        own = {(block.layer, block.kind) for block in code[1].blocks}
        kinds = {"self_attn": ATTENTION, "mlp": FFN}
        read = {
            (int(name.split(".")[2]), kinds[name.split(".")[3]])
            for name in recorder.reads
            if name.split(".")[3:4] and "norm" not in name
        }
        assert read == own
        assert ("lm_head.weight" in recorder.reads) == code[1].head
    readers: defaultdict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for recorder in recorders.values():
        for name, counts in recorder.reads.items():
            if counts.ndim == 2:
                readers[name].append(counts)
    for name, counts in readers.items():
        total = np.sum(counts, axis=0)
        shared = tp > CONFIG.kv_heads and ("k_proj" in name or "v_proj" in name)
        assert (total == (tp // CONFIG.kv_heads if shared else 1)).all(), name


def test_files_are_mapped_by_whoever_reads() -> None:
    """Where to read travels between processes; bytes and maps do not."""
    model = partition_model(load_checkpoint(SHIPPED), 8, "int8")
    _, how = compile_apart(model, ChipSpec(), 64)
    whole = compile_decoder(model, ChipSpec(), 64)
    assert model.is_built(3)
    sent = pickle.dumps(how.unread())
    stored = sum(file.stat().st_size for file in SHIPPED.glob("*.safetensors"))
    assert len(sent) < stored / 4
    assert _same([pickle.loads(sent).image(3)], [whole.memory[3]])


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_digest_knows_bytes_and_places_only(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (sum(cuts), 320)).astype(np.uint8)
    ends = np.cumsum(cuts)
    pieces = [(5, int(end - n), rows[end - n : end]) for end, n in zip(ends, cuts, strict=True)]
    other = (6, 0, rows[:1])
    shuffled = [*pieces, other]
    rng.shuffle(shuffled)  # type: ignore[arg-type]
    whole: Image = [(5, 0, rows), other]
    assert image_digest(shuffled) == image_digest(whole)
    changed = rows.copy()
    changed[rng.integers(len(rows)), rng.integers(320)] ^= 1
    assert image_digest([(5, 0, changed), other]) != image_digest(whole)
    assert image_digest([(5, 1, rows), other]) != image_digest(whole)
