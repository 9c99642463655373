"""When a pass reads first: of slices at several positions the farther ones are read sooner."""

from __future__ import annotations

import pytest

from chip.checker import check
from chip.isa import Op
from chip.scheduling import Pass, Place, Schedule, Stream, program_of
from chip.spec import ChipSpec

SPEC = ChipSpec()


def moved(p: Pass, source: Place, target: Place) -> Stream:
    """A word of one place to another; what is read."""
    value = p.load(source, source.inward + 4, 60)
    _, out = p.op(Op.MOV, 60, value, out=target.outward + 8)
    p.keep(target, out, 60)
    return value


@pytest.mark.parametrize(
    "queues",
    [(44, 45, 46, 47), (46, 47, 48, 49), (47, 48, 49, 50), (17, 18, 19, 21), (3, 4, 5, 6)],
)
def test_a_word_is_read_when_all_its_slices_have_it(queues: tuple[int, ...]) -> None:
    """By the checker: as soon as ``first_read`` says, and not a cycle sooner."""
    source, target, last = Place((60, 61, 62, 63), 0), Place(queues, 5), Place((8, 9, 10, 11), 0)
    for sooner in (0, 1):
        schedule = Schedule()
        p = Pass(schedule, SPEC)
        moved(p, source, target)
        readable = schedule.place(p, 0) + p.ready
        p = Pass(schedule, SPEC)
        value = moved(p, target, last)
        assert p.first_read(value) == p.first_read() <= p.first_read(level=True)
        end = schedule.place(p, readable - p.first_read(value) - sooner) + p.ready
        table, _, gangs = schedule.blocks()
        found = [str(finding) for finding in check(program_of([table], gangs, end), SPEC)]
        assert bool(found) == bool(sooner), found
        assert not sooner or "cycles after the write" in found[0]


def test_a_word_that_a_link_brings_is_read_as_it_was_written() -> None:
    """One direction, one delay: the first slices of both say when."""
    target, last = Place((17, 18, 19, 21), 5), Place((44, 45, 46, 47), 0)
    for sooner in (0, 1):
        schedule = Schedule()
        p = Pass(schedule, SPEC)
        tag = schedule.tag()
        p.emit(Op.RECEIVE, 128, 0, n=4, dc=24, out=0, wo=1, tag=tag)
        p.store(target, Stream(0, 1, tag), SPEC.receive_cycles, -1, dcg=24)
        readable = schedule.place(p, 0) + p.ready
        p = Pass(schedule, SPEC)
        value = moved(p, target, last)
        end = schedule.place(p, readable - p.first_read(value, level=True) - sooner) + p.ready
        table, _, gangs = schedule.blocks()
        found = [str(f) for f in check(program_of([table], gangs, end), SPEC)]
        assert not found if not sooner else found


def test_some_of_what_a_pass_reads() -> None:
    p = Pass(Schedule(), SPEC)
    near = p.load(Place((44,), 0), 32, 60)
    before = len(p.blocks)
    far = p.load(Place((87,), 0), 36, 60)
    assert p.first_read(near) - p.first_read(far) == 10
    assert p.first_read() == p.first_read(near, far) == p.first_read(since=before)
    with pytest.raises(ValueError, match="empty"):
        Pass(Schedule(), SPEC).first_read()
