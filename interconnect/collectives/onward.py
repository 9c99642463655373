"""Words that go on to the next group of chips one by one, each as soon as it is there.

As in ``handover``, but a word leaves while others are still being made: its Sends are placed into
the schedule of the block that makes it, and the next group, which has nothing else to do, spreads
it over its chips when it comes.  All cycles are those of the first group's block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chip import isa
from chip.isa import Op
from chip.scheduling import Pass, Place, Schedule, place_together
from chip.spec import ChipSpec
from interconnect.collectives.handover import ARRIVE, Carrier, Handover, HandoverPlaces
from interconnect.collectives.node import (
    edges,
    receive_from,
    receive_words,
    send_to,
    send_words,
)

#: Stream codes of what leaves, by the link's edge (west, east): streams on which no activations of
#: a product travel, so that its weights leave gaps.
_LEAVE = (44, 12)


@dataclass(frozen=True)
class Departure:
    """``words`` words from ``first`` on, ``step`` apart, that a carrier sends one after the other.

    cycle: of the first vector; pace: cycles from vector to vector.
    """

    first: int
    step: int
    words: int
    cycle: int
    pace: int

    def after(self, cycles: int) -> Departure:
        """The same so many cycles later."""
        return replace(self, cycle=self.cycle + cycles)

    def joined(self, word: int, cycle: int, pace: int) -> Departure | None:
        """This one with a word more, where that goes on in the same way."""
        step = word - self.first if self.words == 1 else self.step
        regular = word == self.first + self.words * step and step > 0 and pace == self.pace
        if regular and cycle == self.cycle + 4 * self.words * pace:
            return replace(self, step=step, words=self.words + 1)
        return None


def deal_words(plan: Handover, ready: Sequence[int]) -> list[list[int]]:
    """The words that each carrier of ``plan`` takes, those first that are readable first."""
    order = sorted(range(len(ready)), key=lambda word: (ready[word], word))
    many = len(plan.carriers)
    return [order[i::many] if plan.spread else order for i in range(many)]


def send_onward(
    schedule: Schedule,
    spec: ChipSpec,
    carrier: Carrier,
    source: Place,
    ready: Sequence[int],
    words: Sequence[int],
    pace: int,
) -> list[Departure]:
    """Send ``words`` of ``source`` in turn on a carrier's cable, each from when it is readable on.

    ready: of every word of ``source``.  pace: of the product that is under way while the first ones
    leave; between vectors of a word is this or the link's own, whatever has it over sooner.
    """
    code = _LEAVE[carrier.link >= isa.LINKS // 2]
    departures: list[Departure] = []
    for word in words:
        found = []
        for each in sorted({spec.send_spacing_cycles, max(spec.send_spacing_cycles, pace)}):
            p = Pass(schedule, spec)
            send_words(p, each, source.at(word), 1, [carrier.link], code, 0)
            earliest = ready[word] - p.first_read()
            found.append((schedule.free(p, earliest) + 3 * each, each, p))
        end, each, p = min(found, key=lambda one: one[:2])
        cycle = schedule.place(p, end - 3 * each, "onward")
        longer = departures[-1].joined(word, cycle, each) if departures else None
        if longer is None:
            departures.append(Departure(word, 1, 1, cycle, each))
        else:
            departures[-1] = longer
    return departures


def take_onward(
    spec: ChipSpec,
    tp: int,
    plan: Handover,
    departures: Sequence[Sequence[Departure]],
    places: HandoverPlaces,
) -> tuple[list[Schedule], int]:
    """What each chip of the next group does, and the cycle from which all words are readable there.

    departures: of each carrier of ``plan``.  Words lie in the inbox, and where they are spread to,
    in the order in which they come.
    """
    schedules = [Schedule() for _ in range(tp)]
    arrivals, at = [], 0
    for carrier, leaving in zip(plan.carriers, departures, strict=True):
        schedule = schedules[carrier.receiver]
        code = ARRIVE[carrier.entry >= isa.LINKS // 2]
        at = at if plan.spread else 0
        for one in leaving:
            p, inbox = Pass(schedule, spec), places.inbox.at(at)
            receive_words(p, spec, one.pace, inbox, one.words, carrier.entry, code, 0)
            start = schedule.place(p, one.cycle, "arrivals")
            assert start == one.cycle, "a word that arrives has to be taken"
            first = start + p.ready - one.pace * (4 * one.words - 1)
            arrivals.append((first, carrier.receiver, at, one))
            at += one.words
    done = 0
    for first, receiver, at, one in sorted(arrivals, key=lambda each: each[:3]):
        if plan.spread:
            done = max(done, _spread(spec, schedules, first, receiver, at, one, places))
        inbox, schedule = places.inbox.at(at), schedules[receiver]
        done = max(done, _keep(schedule, spec, inbox, places.words, one, first))
    return schedules, done


def _spread(
    spec: ChipSpec,
    schedules: Sequence[Schedule],
    first: int,
    receiver: int,
    at: int,
    one: Departure,
    places: HandoverPlaces,
) -> int:
    """Words from ``at`` on in the inbox of ``receiver`` to all others, vector after vector as they
    come, from ``first`` on; when they are readable in their places there.
    """
    done = 0
    for group in edges(range(1, len(schedules))):
        p = Pass(schedules[receiver], spec)
        send_to(p, one.pace, places.inbox.at(at), one.words, group, 0)
        passes, earliest = [(schedules[receiver], p)], first - p.first_read()
        for k in group:
            taken = Pass(schedules[receiver ^ k], spec)
            receive_from(taken, spec, one.pace, places.received[k].at(at), one.words, k, 0)
            passes.append((schedules[receiver ^ k], taken))
        start = place_together(passes, earliest, "spreading")
        for k, (schedule, taken) in zip(group, passes[1:], strict=True):
            there = start + taken.ready - one.pace * (4 * one.words - 1)
            source = places.received[k].at(at)
            done = max(done, _keep(schedule, spec, source, places.words, one, there))
    return done


def _keep(
    schedule: Schedule, spec: ChipSpec, source: Place, goal: Place, one: Departure, first: int
) -> int:
    """Copy words as they come to their places; returns when they are readable there.

    first: when the first vector of ``source`` is.
    """
    p, n, dc = Pass(schedule, spec), one.words, 4 * one.pace
    value = p.load(source, 8 + source.inward, 40, n=n, dc=dc, da=1)
    first_read = p.first_read(value, level=True)
    _, out = p.op(Op.MOV, 40, value, n=n, dc=dc, out=12)
    p.keep(goal.at(one.first), out, 40, n=n, dc=dc, da=one.step)
    ready = first + 3 * one.pace  # a word is copied when all of it is there
    return schedule.place(p, ready - first_read, "copy") + p.ready
