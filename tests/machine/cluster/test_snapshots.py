"""Files of snapshots: of these chips or refused, whole or not there."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chip.spec import ChipSpec
from cluster.processes.snapshots import SnapshotError, forget_before, launches, restore, take
from programs.decoder import Host, compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint
from programs.running import Generation, Runner, RunResult


def runner(*numbers: int, seed: int = 0) -> Any:
    """Chips of 40 words each, of which the odd ones were written."""
    rng = np.random.default_rng(seed)
    chips = [
        SimpleNamespace(
            chip_id=number,
            sram=rng.integers(0, 256, (2, 20, 320), np.uint8),
            digest_sums=rng.integers(0, 2**63, 2).astype(np.uint64),
            saturated=rng.integers(0, 2**40, (number, 3)),
        )
        for number in numbers
    ]
    return SimpleNamespace(chips=chips, touched=lambda chip: np.arange(1, 40, 2))


def result(entries: int) -> RunResult:
    return RunResult([7] * entries, ["decode-64"] * entries, [0], {3: [9]}, {}, 0.5)


def test_only_the_touched_words_the_sums_and_the_counts_come_back(tmp_path: Path) -> None:
    before, after = runner(3, 4, seed=1), runner(3, 4, seed=2)
    kept = [chip.sram.copy() for chip in after.chips]
    size = take(tmp_path, 0, before, result(5))
    assert (tmp_path / "group-0-launch-5.snapshot").stat().st_size == size
    assert size > 2 * 20 * 320
    assert restore(tmp_path, 0, 5, after) == result(5)
    for old, new, own in zip(before.chips, after.chips, kept, strict=True):
        rows, words, untouched = (a.reshape(40, 320) for a in (old.sram, new.sram, own))
        assert (words[1::2] == rows[1::2]).all() and (words[::2] == untouched[::2]).all()
        assert new.digest_sums.tolist() == old.digest_sums.tolist()
        assert new.saturated.tolist() == old.saturated.tolist()


@pytest.mark.parametrize("others", [(3,), (4, 3), (3, 5), (3, 4, 5)])
def test_a_snapshot_of_other_chips_is_refused(tmp_path: Path, others: tuple[int, ...]) -> None:
    take(tmp_path, 0, runner(3, 4), result(5))
    into = runner(*others)
    words = [chip.sram.copy() for chip in into.chips]
    with pytest.raises(SnapshotError, match=r"group-0-launch-5\.snapshot: of other chips$"):
        restore(tmp_path, 0, 5, into)
    assert all((chip.sram == w).all() for chip, w in zip(into.chips, words, strict=True))


@pytest.mark.parametrize("spare", [False, True])
def test_without_room_no_part_of_a_file_is_left(tmp_path: Path, spare: bool) -> None:
    """The system allows files of 5,000 bytes: less than a snapshot's, more than its head."""
    if spare:  # a forgotten snapshot's file, which the next is written over
        take(tmp_path, 0, runner(3, 4), result(2))
        forget_before(tmp_path, 0, 3)
    take(tmp_path, 1, runner(3, 4), result(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError) as caught:
            take(tmp_path, 0, runner(3, 4), result(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["group-1-launch-2.snapshot"]
    assert launches(tmp_path, 0) == set()
    take(tmp_path, 0, runner(3, 4), result(5))
    assert launches(tmp_path, 0) == {5}


@pytest.mark.long
def test_a_text_costs_the_same_wherever_it_is_taken_up(tmp_path: Path) -> None:
    """Its last chunk begins in another group of sixteen positions than the one before it ended."""
    config = ModelConfig(60, 1, 4, 2, 24, 90, 61, max_position=4096)
    model = partition_model(random_checkpoint(config, 3), 1)
    slow = ChipSpec(pcie_latency_s=1e-3)  # so that the fewest launches are the soonest
    artifact = compile_decoder(model, slow, 64, chunk=12)
    runner = Runner.alone(artifact, Host(artifact, model))
    job = Generation(tuple(range(27)), 3)

    def between(result: RunResult) -> None:
        take(tmp_path, 0, runner, result)

    calm = runner.generate(job, between=between)
    assert calm.entries == ["chunk-64"] * 2 + ["chunk-64-end"] + ["decode-64"] * 2
    for launch in range(1, 5):
        later = Runner.alone(artifact, Host(artifact, model))
        taken = later.generate(job, restore(tmp_path, 0, launch, later))
        assert (taken.tokens, taken.sums) == (calm.tokens, calm.sums)
        assert taken.io_seconds == pytest.approx(calm.io_seconds, rel=1e-9), launch
