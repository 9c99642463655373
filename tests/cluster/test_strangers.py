"""Who does not hold the run's token gets nowhere: attachments and vectors refused and counted."""

from __future__ import annotations

import mmap
import secrets
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from chip.engine import Rings, run_chips
from chip.engine.ring import CHECKSUM, HEAD, LAUNCH, SENT_CYCLE, SEQUENCE, TAIL
from chip.faults import LockstepViolation
from chip.linking import link
from cluster.listening import Listener
from cluster.processes import ChipGroup, MappingError, Placement, SharedMapping, chip_actors
from cluster.processes.group import FORGED_SECONDS, AbandonedError, MappedPeers
from cluster.processes.mapping import MappingLayout
from cluster.runs import run_generation
from programs.artifact import Artifact
from programs.running import Generation
from tests.cluster.test_lockstep import CABLES, SPEC, chips, passing_program

JOB = Generation((70, 221, 304), 6)


def strange_rings(path: Path, layout: MappingLayout) -> Rings:
    """The links' rings, written by someone who can open the file and knows every offset."""
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    part = memoryview(memory)[layout.rings_at : layout.rings_at + layout.ring_bytes]
    return Rings.attach(part, layout.rings, layout.capacity)


def forge(rings: Rings, ring: int, meta: np.ndarray) -> None:
    capacity = len(rings.meta) // len(rings.counts)
    place = ring * capacity + int(rings.counts[ring, TAIL]) % capacity
    rings.meta[place] = meta
    rings.data[place] = 0x01020304
    rings.counts[ring, TAIL] += 1


def test_an_attachment_without_the_token_is_refused_and_counted() -> None:
    layout = MappingLayout(processes=1, chips=1, values=4, rings=0)
    mapping = SharedMapping.create(layout)
    assert mapping.path is not None
    try:
        for number in range(3):
            with pytest.raises(MappingError, match="another run"):
                SharedMapping.attach(mapping.path, layout, secrets.token_bytes(16))
            assert mapping.refused == (number + 1, 0)
        assert mapping.token not in mapping.path.read_bytes()
        SharedMapping.attach(mapping.path, layout, mapping.token)
        assert mapping.refused == (3, 0)
    finally:
        mapping.unlink()


def test_a_well_formed_vector_of_another_key_is_refused() -> None:
    """The very vector that is due, in all but the key."""
    linked = link(passing_program(), SPEC)
    honest = Rings.allocate(2)
    pair = chips()
    for chip in pair:
        chip.begin(linked, 0)
    run_chips(pair, honest, rounds=1)
    for key in (0, 12345):
        rings = Rings.allocate(2)
        rings.key = key
        rings.meta[:], rings.data[:] = honest.meta, honest.data
        rings.counts[:, TAIL] = 6
        chip = chips()[1]
        chip.begin(linked, 0)
        if key == 0:
            run_chips([chip], rings)
            assert rings.counts[0, HEAD] == 6
        else:
            with pytest.raises(LockstepViolation, match="key of these links") as refused:
                run_chips([chip], rings)
            assert refused.value.forged and rings.counts[0, HEAD] == 0
    assert CABLES == [(0, 0, 1, 0)]


def test_a_mailbox_written_without_the_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import zlib

    monkeypatch.setattr("cluster.processes.group.FORGED_SECONDS", 0.2)
    assert FORGED_SECONDS > 0.2
    layout = MappingLayout(processes=1, chips=1, values=4, rings=0)
    mapping = SharedMapping.create(layout)
    try:
        values = np.ones(4, np.float32)
        stranger = SharedMapping(mapping._memory, layout, None, b"")
        stranger.post(0, 1, values)
        assert stranger.peek(0, 1) is not None and mapping.peek(0, 1) is None
        assert zlib.crc32(values.data) != 0
        with pytest.raises(AbandonedError, match="mailbox of chip 0"):
            MappedPeers(0, mapping, None)._read(0, 1)
        assert mapping.refused == (0, 1) and mapping.abandoned
    finally:
        mapping.unlink()


@pytest.mark.ray
@pytest.mark.long
def test_a_run_goes_on_without_the_forged_vectors(artifact: Artifact, local_ray: None) -> None:
    calm = run_generation(artifact, JOB, Placement(8, in_process=True), Listener(), perf_counter())
    with chip_actors(artifact, Placement(4), lambda _: None) as supervisor:
        mapping = supervisor.mapping
        assert mapping is not None and mapping.path is not None
        with pytest.raises(MappingError, match="another run"):
            SharedMapping.attach(mapping.path, mapping.layout, bytes(16))
        meta = np.zeros(5, np.int64)
        meta[[SENT_CYCLE, SEQUENCE, CHECKSUM, LAUNCH]] = 400, 0, 99, 0
        rings = strange_rings(mapping.path, mapping.layout)
        for ring in range(len(rings.counts)):
            forge(rings, ring, meta)
        results = supervisor.run("generate", JOB)
        attachments, vectors = supervisor.refused
    assert results[0].run.tokens == calm.tokens
    sums = {chip: pair for result in results for chip, pair in result.run.sums.items()}
    group = ChipGroup(artifact, range(8), 0, SharedMapping.private(mapping.layout))
    assert sums == group.generate(JOB).run.sums
    assert attachments == 1 and 1 <= vectors <= 2
