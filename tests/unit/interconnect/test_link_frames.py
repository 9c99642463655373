"""Phases, buffers and forward delays of links: no two accesses of a slice meet, whatever runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from chip.isa import slice_position
from chip.spec import PRESETS, ChipSpec
from interconnect.wires import (
    LINK_NUMBERS,
    LinkFramesError,
    inward_stream,
    link_frames,
    outward_stream,
    phases,
    read_lead,
    write_delay,
)
from interconnect.wires.frames import GLOBAL_LINKS, forward_frames, free_quads
from interconnect.wiring import link_to

SPECS = [
    *PRESETS.values(),
    replace(ChipSpec(), hop_cycles=401),
    replace(ChipSpec(), send_spacing_cycles=12),
    replace(ChipSpec(), send_spacing_cycles=25),
    replace(PRESETS["groq-3-lp30"], hop_cycles=600, read_cycles=3, write_cycles=4),
]


def cycles_of(spec: ChipSpec, link: int, plane: int, shift: int) -> set[int]:
    """Cycles modulo four frames at which byte plane ``plane`` is sent on ``link``, shifted."""
    frames = link_frames(spec)
    frame = spec.send_spacing_cycles
    sent = [
        f for f in range(4) if frames.turn_frames == 1 or (f + frames.rotation[link]) % 4 == plane
    ]
    return {(frame * f + int(frames.phase[link]) + shift) % (4 * frame) for f in sent}


def test_quads_are_whole_ones_and_then_what_is_left_over() -> None:
    reserved = replace(ChipSpec(), reserved_slices_west=(0, 1, 5, 10, 43), reserved_slices_east=())
    left = [(2, 3, 4, 6), (7, 8, 9, 11)]  # 40, 41 and 42 are too few
    whole = [(n, n + 1, n + 2, n + 3) for n in (*range(12, 40, 4), *range(44, 88, 4))]
    assert free_quads(reserved) == whole + left
    assert len(free_quads(replace(reserved, reserved_slices_west=()))) == 22


@pytest.mark.parametrize("spec", SPECS)
def test_reads_for_different_links_never_share_a_slice_and_cycle(spec: ChipSpec) -> None:
    frames = link_frames(spec)
    for quad in (*frames.working, *frames.received.values()):
        for plane, queue in enumerate(quad):
            p = slice_position(queue)
            reads = {k: cycles_of(spec, k, plane, -read_lead(spec, k, p)) for k in LINK_NUMBERS}
            for a, b in combinations(LINK_NUMBERS, 2):
                assert not reads[a] & reads[b], (queue, a, b)


@pytest.mark.parametrize("spec", SPECS)
def test_writes_of_a_link_never_meet_the_reads_that_forward_from_its_buffer(
    spec: ChipSpec,
) -> None:
    for link, quad in link_frames(spec).received.items():
        for sender in GLOBAL_LINKS if link in GLOBAL_LINKS else (link,):
            for plane, queue in enumerate(quad):
                p = slice_position(queue)
                writes = cycles_of(spec, sender, plane, write_delay(spec, link, p))
                for onward in set(LINK_NUMBERS) - {link}:
                    reads = cycles_of(spec, onward, plane, -read_lead(spec, onward, p))
                    assert not writes & reads, (sender, link, onward, queue)


@pytest.mark.parametrize("spec", SPECS)
def test_buffers_and_streams_are_nobody_elses(spec: ChipSpec) -> None:
    frames = link_frames(spec)
    assert sorted(frames.received) == list(LINK_NUMBERS)
    slices = [queue for quad in (*frames.working, *frames.received.values()) for queue in quad]
    assert len(set(slices)) == len(slices) >= 4 * (11 + 4)
    reserved = {*spec.reserved_slices_west, *(44 + s for s in spec.reserved_slices_east)}
    assert not reserved & set(slices)
    assert all(len({queue // 44 for queue in quad}) == 1 for quad in frames.received.values())
    codes = [f(link) for f in (inward_stream, outward_stream) for link in range(16)]
    assert len(set(codes)) == 32
    assert all((outward_stream(k) < 32) == (k >= 8) == (inward_stream(k) >= 32) for k in range(16))


@pytest.mark.parametrize("spec", SPECS)
def test_phases_are_inside_the_frame_and_of_the_wired_links(spec: ChipSpec) -> None:
    phase = phases(spec)
    assert phase.shape == (16,) and phase.dtype == np.int64 and not phase.flags.writeable
    assert ((phase >= 0) & (phase < spec.send_spacing_cycles)).all()
    unused = sorted(set(range(16)) - set(LINK_NUMBERS))
    assert not phase[unused].any()
    assert {link_to(k) for k in range(1, 8)} | set(GLOBAL_LINKS) == set(LINK_NUMBERS)
    if spec.send_spacing_cycles >= 24:
        assert len(set(phase[list(LINK_NUMBERS)].tolist())) == 11
    assert phases(spec) is phases(spec)  # searched once


@pytest.mark.parametrize("spec", SPECS)
def test_forward_delays_are_the_least_that_carry_readable_words(spec: ChipSpec) -> None:
    frames, delays = link_frames(spec), forward_frames(spec)
    frame = spec.send_spacing_cycles
    wired = np.zeros((16, 16, 16), bool)
    wired[np.ix_(LINK_NUMBERS, LINK_NUMBERS, LINK_NUMBERS)] = True
    assert not delays[~wired].any() and delays.dtype == np.int64
    for sender, link, onward in np.argwhere(wired).tolist():
        delay = int(delays[sender, link, onward])
        positions = [slice_position(q) for q in frames.received[link]]
        readable = [
            int(frames.phase[sender]) + write_delay(spec, link, p) + spec.write_cycles
            for p in positions
        ]
        reads = [int(frames.phase[onward]) - read_lead(spec, onward, p) for p in positions]
        slack = min(delay * frame + r - w for r, w in zip(reads, readable, strict=True))
        assert 0 <= slack < frame * frames.turn_frames
        for start in range(4):
            begins = frames.first_plane(sender, start)
            assert begins == frames.first_plane(onward, start + delay)


def test_a_hop_of_the_default_chip_takes_27_to_30_frames() -> None:
    """650 cycles from Send to readable are 27.1 frames; then the way back to the edge."""
    delays = forward_frames(ChipSpec())
    assert 27 <= delays[delays > 0].min() <= delays.max() <= 30


def test_the_default_phases() -> None:
    """Programs and wire schedules of earlier runs depend on them."""
    assert phases(ChipSpec()).tolist() == [0, 2, 4, 6, 8, 0, 0, 0, 9, 7, 5, 3, 1, 23, 0, 0]


@pytest.mark.parametrize(
    "spec",
    [
        replace(ChipSpec(), send_spacing_cycles=4),
        replace(ChipSpec(), reserved_slices_west=tuple(range(44))),
    ],
)
@pytest.mark.long
def test_frames_that_are_too_short_say_so(spec: ChipSpec) -> None:
    with pytest.raises(LinkFramesError, match="too short for 11 links, or too many"):
        phases(spec)


@pytest.mark.parametrize("spec", SPECS)
def test_working_quads_are_ordered_from_the_middle_of_the_vxm(spec: ChipSpec) -> None:
    """The VXM lies at 20..24; a quad is as far as its farthest slice.  Of equals, west is first."""
    frames = link_frames(spec)
    farthest = [max(abs(slice_position(q) - 22) for q in quad) for quad in frames.working]
    assert farthest == sorted(farthest)
    for here, there in zip(frames.working, frames.working[1:], strict=False):
        if farthest[frames.working.index(here)] == farthest[frames.working.index(there)]:
            assert here < there


@pytest.mark.parametrize("spec", SPECS)
def test_a_word_begins_with_the_plane_whose_turn_it_is(spec: ChipSpec) -> None:
    """Where a frame carries whole turns it begins with the first one on every link."""
    frames = link_frames(spec)
    for link in LINK_NUMBERS:
        for frame in range(9):
            turned = (frame + int(frames.rotation[link])) % 4
            assert frames.first_plane(link, frame) == (0 if frames.turn_frames == 1 else turned)
