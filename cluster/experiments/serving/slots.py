"""Who enters LPU pipelines when: requests in places, and the slots of a conveyor belt.

A pipeline without overlap works on one request, from its first prompt token to its last answer
token.  With an interval it has a *slot* for a token every so many cycles, slot s of a turn at
cycles ``s * interval + n * turn`` (on a compiled belt one for every stage), and *places*: as many
as it has slots and room for caches.  A request that writes an answer has a slot of every turn, its
own: nobody disturbs it.  All other slots are those of prompts, one request after another: its
tokens enter at every slot that nobody owns, but for those before the host has brought the token;
and when its first answer token is there it takes the slot, of those nobody had when it began, that
comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit
from cluster.errors import InputError
from cluster.experiments.serving.arrivals import Trace, check_time
from cluster.experiments.serving.belt import Belt, cycles_to_ps, ps_to_cycles
from cluster.experiments.serving.figures import NOBODY, Served, ServiceStage

I64 = NDArray[np.int64]

LPU_SERVERS = "places of LPU pipelines"
MOST_PLACES = 65_536
"""Places of all pipelines."""
NEVER = 1 << 62


class Passage(NamedTuple):
    """Cycles at which a request enters, and has its first, second and last token.

    second: -1 for an answer of one token.  reading: cycles that places were held for its prompt.
    """

    entry: int
    first: int
    second: int
    done: int
    reading: int


@jit
def _fill_slots(
    turn: int, phases: I64, owned: I64, until: I64, begin: int, tokens: int, gap: int, taken: I64
) -> tuple[int, int]:
    """The first and the last of ``tokens`` slots from ``begin`` on that nobody owns.

    gap: cycles from one of them to the next at least.

    owned, until: whose slots from the one to before the other are somebody's; int64 [places], as
    phases, which ascend.  taken: int64 [places], is added to.
    """
    first, count, base, earliest = -1, 0, begin // turn * turn, begin
    while True:
        for place in range(len(phases)):
            at = base + phases[place]
            if at < earliest or owned[place] <= at < until[place]:
                continue
            if first < 0:
                first = at
            taken[place] += 1
            count += 1
            earliest = at + gap
            if count == tokens:
                return first, at
        base += turn


class BeltPlaces:
    """The places of equal pipelines, given to requests in the order in which they ask."""

    def __init__(self, belt: Belt, pipelines: int) -> None:
        if not 1 <= pipelines * belt.places <= MOST_PLACES:
            raise InputError(
                f"{pipelines} LPU pipelines of {belt.places} places: use 1 pipeline up to "
                f"{MOST_PLACES // belt.places:,}"
            )
        self._belt, self._turn = belt, belt.turn
        self._phase = np.arange(belt.slots, dtype=np.int64) * (belt.interval or 0)
        self._room = np.zeros((pipelines, belt.places), np.int64)  # since when caches have room
        self._owned = np.zeros((pipelines, belt.slots), np.int64)  # whose slots from here
        self._until = np.zeros_like(self._owned)  # to before here are somebody's
        self._read = np.zeros(pipelines, np.int64)  # since when prompts may enter
        self._held = np.zeros_like(self._owned)

    @property
    def busy(self) -> I64:
        """Cycles each slot of the turn was held; int64 [slots of all pipelines]."""
        return self._held.reshape(-1)

    def enter(self, ready: int, prompt: int, output: int, cached: bool = False) -> Passage:
        """A request that is ready at cycle ``ready``; it must fit.

        cached: the prompt and the first token come from elsewhere, so that the place begins with
        the first token, ``first`` is the entry and ``output`` is 2 or more.
        """
        if self._belt.slots == 1:
            passage = self._alone(ready, prompt, output, cached)
        elif cached:
            begin = np.maximum(self._room.min(axis=1), ready)
            pipeline, slot, entry = self._next_slot(np.maximum(self._until, begin[:, None]))
            passage = self._answer(entry, pipeline, slot, prompt, output - 1)
        else:
            passage = self._among_others(ready, prompt, output)
        check_time(passage.done / self._belt.clock_hz)
        return passage

    def _alone(self, ready: int, prompt: int, output: int, cached: bool) -> Passage:
        """On a pipeline that has it alone."""
        belt = self._belt
        begins = np.maximum(self._room[:, 0], ready)
        pipeline = int(begins.argmin())
        entry = int(begins[pipeline])
        reading = 0 if cached else belt.reading(prompt)
        first = entry + reading
        second = first + belt.out(prompt) if output > 1 else -1
        done = first + belt.answers(prompt, output - 1)
        self._room[pipeline, 0] = done
        self._held[pipeline, 0] += done - entry
        return Passage(entry, first, second, done, reading)

    def _among_others(self, ready: int, prompt: int, output: int) -> Passage:
        """Prompt tokens at slots that nobody owns, then the answer at those of a place."""
        begins = np.maximum(np.maximum(self._room.min(axis=1), self._read), ready)
        pipeline = int(begins.argmin())
        begin = int(begins[pipeline])
        owned, until = self._owned[pipeline], self._until[pipeline]
        taken = np.zeros(len(until), np.int64)
        gap = max(1, self._belt.feeding_cycles)
        entry, last = _fill_slots(self._turn, self._phase, owned, until, begin, prompt, gap, taken)
        self._held[pipeline] += taken * self._turn
        self._read[pipeline] = last + gap
        first, reading = last + self._belt.out(prompt - 1), prompt * self._turn
        if output == 1:
            self._take_room(pipeline, first)
            return Passage(entry, first, -1, first, reading)
        since = np.where(until <= begin, first, NEVER)
        _, slot, answers = self._next_slot(since[None])
        answer = self._answer(answers, pipeline, slot, prompt, output - 1)
        return Passage(entry, first, answer.second, answer.done, reading)

    def _next_slot(self, since: I64) -> tuple[int, int, int]:
        """Pipeline, slot and cycle of the earliest one not before ``since``, int64 [p, slots]."""
        entries = self._phase - (self._phase - since) // self._turn * self._turn
        pipeline, slot = np.unravel_index(int(entries.argmin()), entries.shape)
        return int(pipeline), int(slot), int(entries[pipeline, slot])

    def _answer(self, entry: int, pipeline: int, slot: int, prompt: int, tokens: int) -> Passage:
        """``tokens`` tokens from cycle ``entry`` on, one a turn at its slot."""
        end = entry + tokens * self._turn
        self._owned[pipeline, slot], self._until[pipeline, slot] = entry, end
        self._held[pipeline, slot] += end - entry
        self._take_room(pipeline, end)
        second = entry + self._belt.out(prompt)
        done = end - self._turn + self._belt.out(prompt + tokens - 1)
        return Passage(entry, entry, second, done, 0)

    def _take_room(self, pipeline: int, until: int) -> None:
        """The caches that have been free longest are somebody's until then."""
        room = self._room[pipeline]
        room[room.argmin()] = until


@dataclass(frozen=True, eq=False)
class Ride:
    """How requests went through the belts: cycles, int64 [requests].

    busy_ps: time each slot was held, int64 [slots].  reading: cycles of that for prompts.
    """

    ready: I64
    entry: I64
    first: I64
    second: I64
    done: I64
    busy_ps: I64
    reading: int


def ride(
    ready_ps: I64, prompt: I64, output: I64, belt: Belt, pipelines: int, cached: bool = False
) -> Ride:
    """Give places to requests in the order of the arrays, int64 [requests]; ready_ps ascends.

    cached: as for ``BeltPlaces.enter``.
    """
    places = BeltPlaces(belt, pipelines)
    ready = [ps_to_cycles(ps, belt.clock_hz) for ps in ready_ps.tolist()]
    went = [
        places.enter(at, tokens, answers, cached)
        for at, tokens, answers in zip(ready, prompt.tolist(), output.tolist(), strict=True)
    ]
    entry, first, second, done, reading = np.array(went, np.int64).reshape(-1, 5).T
    busy_ps = to_ps(places.busy, belt.clock_hz)
    whole = sum(reading.tolist())
    return Ride(np.array(ready, np.int64), entry, first, second, done, busy_ps, whole)


def to_ps(cycles: I64, clock_hz: int) -> I64:
    """``cycles_to_ps`` of int64 [n]."""
    return np.array([cycles_to_ps(value, clock_hz) for value in cycles.tolist()], np.int64)


def longest_of(prompt: I64, output: I64) -> int:
    """Positions of the longest of these requests; 1 where there is none."""
    return int((prompt + output - 1).max(initial=1))


def serve_on_belts(trace: Trace, belt: Belt, pipelines: int) -> Served:
    """Serve ``trace`` on ``pipelines`` equal pipelines; requests too long are refused.

    The belt runs the schedule of the bucket that holds the longest request that is not refused.
    One decode step per answer token; busy time is that of slots.
    """
    fine = np.flatnonzero(belt.fits(trace.prompt_tokens, trace.output_tokens))
    prompt, output = trace.prompt_tokens[fine], trace.output_tokens[fine]
    belt = belt.up_to(longest_of(prompt, output))
    went = ride(trace.arrival_ps[fine], prompt, output, belt, pipelines)
    start, first, second, done = (np.full(len(trace), -1, np.int64) for _ in range(4))
    at_once = went.entry == went.ready
    start[fine] = np.where(at_once, trace.arrival_ps[fine], to_ps(went.entry, belt.clock_hz))
    first[fine] = to_ps(went.first, belt.clock_hz)
    several = went.second >= 0
    second[fine[several]] = to_ps(went.second[several], belt.clock_hz)
    done[fine] = to_ps(went.done, belt.clock_hz)
    tokens = int(output.sum())
    busy, places = sum(went.busy_ps.tolist()), len(went.busy_ps)
    prefill = min(cycles_to_ps(went.reading, belt.clock_hz), busy)
    stages = {
        "prefill": ServiceStage(LPU_SERVERS, places, prefill, trace.arrival_ps[fine], start[fine]),
        "decode": ServiceStage(LPU_SERVERS, places, busy - prefill, NOBODY, NOBODY),
    }
    fed = sum(map(belt.fed, prompt.tolist(), output.tolist()))
    host = belt.crossing(fed, tokens)
    return Served(start, first, second, done, went.busy_ps, tokens, tokens, stages, host)
