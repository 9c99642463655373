"""Slow and independent: the rules of batching and of the belt, one instant and one token at a time.

Shares no code with the simulation: scalar costs, plain loops over all servers at every instant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: When requests leave the queue, and have their first, second and last token; -1 where never.
Times = tuple[list[int], list[int], list[int], list[int]]


@dataclass
class Machine:
    end: int | None = None
    prefill: int | None = None
    up: bool = True
    ready: int = 0
    idle: int | None = None
    batch: dict[int, int] = field(default_factory=dict)  # request -> tokens it has


def batched(
    arrival: list[int],
    prompt: list[int],
    output: list[int],
    prefill_ps: Callable[[int], int],
    step_ps: Callable[[list[int]], int],
    max_batch: int,
    kv_tokens: int,
    servers: int,
    scaling: tuple[int, int, int | None, int, int] | None = None,
    log: list[tuple[int, int]] | None = None,
) -> Times:
    """step_ps takes the positions each request of the batch attends to.

    scaling: fewest servers, waiting requests per server, longest wait, idleness, start-up; the most
    is ``servers``.  log: (instant, servers up) is added at every change.
    """
    requests = range(len(arrival))
    need = [prompt[r] + output[r] for r in requests]
    start, first, second, done = ([-1] * len(arrival) for _ in range(4))
    machines = [Machine() for _ in range(servers)]
    queue: list[int] = []
    arrived, now = 0, -1
    if scaling:
        for m in machines[scaling[0] :]:
            m.up = False
    while True:
        instants = [m.end for m in machines if m.end is not None]
        if scaling:
            _, _, longest, rest, _ = scaling
            later = [m.ready for m in machines if m.up]
            later += [m.idle + rest for m in machines if m.up and m.idle is not None]
            later += [arrival[r] + longest for r in queue if longest is not None]
            instants += [at for at in later if at > now]
        instants += arrival[arrived : arrived + 1]
        if not instants:
            return start, first, second, done
        now = min(instants)
        while arrived < len(arrival) and arrival[arrived] == now:
            if need[arrived] <= kv_tokens:
                queue.append(arrived)
            arrived += 1
        for m in machines:
            if m.end != now:
                continue
            m.end = None
            if m.prefill is not None:
                first[m.prefill] = now
                m.batch[m.prefill] = 1
                m.prefill = None
            else:
                for r in m.batch:
                    m.batch[r] += 1
                    if m.batch[r] == 2:
                        second[r] = now
            for r in [r for r in m.batch if m.batch[r] == output[r]]:
                done[r] = now
                del m.batch[r]
        for m in machines:
            if m.end is not None or not m.up or m.ready > now:
                continue
            used = sum(need[r] for r in m.batch)
            if queue and len(m.batch) < max_batch and used + need[queue[0]] <= kv_tokens:
                m.prefill = queue.pop(0)
                start[m.prefill] = now
                m.end = now + prefill_ps(prompt[m.prefill])
            elif m.batch:
                m.end = now + step_ps([prompt[r] + m.batch[r] for r in sorted(m.batch)])
        if scaling:
            least, most_waiting, longest, rest, starting = scaling
            before = sum(m.up for m in machines)
            for m in machines:
                resting = m.up and m.ready <= now and m.end is None
                m.idle = (now if m.idle is None else m.idle) if resting else None
            busy_starting = any(m.up and m.ready > now for m in machines)
            up = before
            while up < servers and len(queue) > most_waiting * up:
                up += 1
            late = bool(queue) and longest is not None and now - arrival[queue[0]] >= longest
            if up == before < servers and late and not busy_starting:
                up += 1
            for _ in range(up - before):
                m = next(m for m in machines if not m.up)
                m.up, m.ready = True, now + starting
            for m in machines[::-1]:
                if m.idle is not None and now - m.idle >= rest and not queue and up > least:
                    m.up, m.idle, up = False, None, up - 1
            if log is not None and up != before:
                log.append((now, up))


def belted(
    arrival: list[int],
    prompt: list[int],
    output: list[int],
    cycles: Callable[[int, bool], int],
    context: int,
    pipelines: int,
    interval: int | None,
    turn: int,
    room: int = 1 << 20,
    slots: int | None = None,
    gap: int = 1,
) -> Times:
    """One token at a time; all times in cycles.

    slots: tokens that may enter in a turn, None for as many as fit.  gap: cycles from one token of
    a prompt to the next at least.

    cycles(position, logits): cycles of the token at a position.  With an interval a token begins at
    every slot, place p's at its phase of the turn; see ``_slotted``.
    """
    if interval is not None:
        slots = turn // interval if slots is None else slots
        if slots > 1:
            return _slotted(
                (arrival, prompt, output),
                cycles,
                context,
                pipelines,
                interval,
                turn,
                room,
                slots,
                gap,
            )
    free = [0] * pipelines
    start, first, second, done = ([-1] * len(arrival) for _ in range(4))
    for r in range(len(arrival)):
        if prompt[r] + output[r] - 1 > context:
            continue
        s = min(range(pipelines), key=lambda s: max(free[s], arrival[r]))
        now = max(free[s], arrival[r])
        start[r] = now
        for position in range(prompt[r] + output[r] - 1):
            answer = position >= prompt[r] - 1
            now += cycles(position, answer)
            if answer and first[r] < 0:
                first[r] = now
            elif answer and second[r] < 0:
                second[r] = now
        free[s] = done[r] = now
    return start, first, second, done


def _slotted(
    requests: tuple[list[int], list[int], list[int]],
    cycles: Callable[[int, bool], int],
    context: int,
    pipelines: int,
    interval: int,
    turn: int,
    room: int,
    slots: int,
    gap: int,
) -> Times:
    """Cycle by cycle: prompts take slots that no answer has, one request after another.

    An answer has a slot of every turn.  A request needs room for its caches, which ``room``
    requests have at a time, and a slot that nobody has when it begins.
    """
    arrival, prompt, output = requests
    answers: set[tuple[int, int]] = set()  # slots of answers: pipeline, cycle
    empty = {(s, p): 0 for s in range(pipelines) for p in range(slots)}  # since when
    ends: list[list[int]] = [[] for _ in range(pipelines)]  # of requests that have caches
    read = [0] * pipelines
    start, first, second, done = ([-1] * len(arrival) for _ in range(4))

    def place_at(cycle: int) -> int:
        """Which slot a cycle is, or ``slots`` where it is none."""
        place, odd = divmod(cycle % turn, interval)
        return slots if odd else min(place, slots)

    for r in range(len(arrival)):
        if prompt[r] + output[r] - 1 > context:
            continue
        now = arrival[r]
        while True:
            ready = [
                s
                for s in range(pipelines)
                if read[s] <= now and sum(end > now for end in ends[s]) < min(room, slots)
            ]
            if ready:
                break
            now += 1
        s = ready[0]
        mine = [p for p in range(slots) if empty[s, p] <= now]
        fed, last = 0, -gap
        while fed < prompt[r]:
            if place_at(now) < slots and (s, now) not in answers and now >= last + gap:
                start[r] = now if fed == 0 else start[r]
                fed, last = fed + 1, now
            now += 1
        read[s] = last + gap
        known = last + cycles(prompt[r] - 1, True)
        first[r] = done[r] = known
        while output[r] > 1 and place_at(known) not in mine:
            known += 1
        own = place_at(known)
        for answer in range(1, output[r]):
            answers.add((s, known))
            done[r] = known + cycles(prompt[r] + answer - 1, True)
            second[r] = done[r] if answer == 1 else second[r]
            known += turn
        if output[r] > 1:
            empty[s, own] = known
        ends[s].append(known)
    return start, first, second, done
