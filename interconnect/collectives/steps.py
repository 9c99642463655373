"""Collectives as steps: which words a chip sends to which chip, and what it adds or copies then.

Knows chips grouped into nodes (chip = node * chips per node + member), named buffers and counts
of words; knows no links, routes, cycles or instructions.  A collective is hierarchical: what can
be done inside the node is done inside the node, and member m of one node talks to member m of the
others.  Every word is added at one owner, its terms in ascending order of members, then of nodes,
so a floating-point sum has the same bits on every chip and is reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Buffers of a chip: the caller's words, the result, and two for what is in between.
SOURCE, RESULT, PARTIAL, SHARD = 0, 1, 2, 3

OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather", "broadcast", "all-to-all")

#: In a term's ``message`` column: the term lies in one of the chip's own buffers.
OWN = -1


@dataclass(frozen=True)
class Step:
    """Messages that go out together, and what is done when the last has arrived.

    messages int64 [m, 7], in the order in which they get link slots: source chip, destination
    chip, buffer, first word, inner, outer, stride: ``outer`` groups of ``inner`` consecutive words,
    one group every ``stride`` words (inner * outer words travel).
    jobs int64 [j, 4]: chip, target buffer, first word, words; ascending by chip.
    terms int64 [t, 4], the terms of job after job in the order in which they are added: job,
    message or OWN, buffer (of OWN terms), first word (of the buffer or of the message's words).
    A job with one term copies.
    """

    messages: Ints
    jobs: Ints
    terms: Ints


def words_of(messages: Ints) -> Ints:
    """Words of each message, int64 [m]."""
    words: Ints = messages[:, 4] * messages[:, 5]
    return words


@dataclass(frozen=True)
class Groups:
    """``chips`` chips in nodes of ``members``."""

    chips: int
    members: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.chips // self.members

    @property
    def member(self) -> Ints:
        """int64 [chips]: number of each chip in its node."""
        return np.arange(self.chips, dtype=np.int64) % self.members

    @property
    def node(self) -> Ints:
        """int64 [chips]: node of each chip."""
        return np.arange(self.chips, dtype=np.int64) // self.members

    def inside(self) -> tuple[Ints, Ints]:
        """(sources, destinations) of all pairs inside nodes, neighbour after neighbour."""
        chip = np.arange(self.chips, dtype=np.int64)
        exclusive = self.members & (self.members - 1) == 0  # pairs by XOR need a power of two
        to = [
            self.node * self.members
            + (self.member ^ k if exclusive else (self.member + k) % self.members)
            for k in range(1, self.members)
        ]
        return np.tile(chip, len(to)), _joined(to)

    def between(self) -> tuple[Ints, Ints]:
        """(sources, destinations) of all pairs of one member, node offset after node offset."""
        chip = np.arange(self.chips, dtype=np.int64)
        to = [(chip + d * self.members) % self.chips for d in range(1, self.nodes)]
        return np.tile(chip, len(to)), _joined(to)

    def everybody(self) -> tuple[Ints, Ints]:
        """(sources, destinations) of all pairs, chip offset after chip offset."""
        chip = np.arange(self.chips, dtype=np.int64)
        to = [(chip + d) % self.chips for d in range(1, self.chips)]
        return np.tile(chip, len(to)), _joined(to)


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _messages(pairs: tuple[Ints, Ints], buffer: int, first: Ints | int, inner: Ints | int,
              outer: int = 1, stride: int = 0) -> Ints:  # fmt: skip
    columns = (*pairs, buffer, first, inner, outer, stride)
    table = np.stack([np.broadcast_to(c, pairs[0].shape) for c in columns], axis=1)
    kept: Ints = table[words_of(table) > 0].astype(np.int64)
    return kept


def _number_of(messages: Ints, chips: int) -> Ints:
    """int64 [chips * chips]: number of the message from source to destination, OWN if none."""
    number = np.full(chips * chips, OWN, np.int64)
    number[messages[:, 0] * chips + messages[:, 1]] = np.arange(len(messages))
    return number


def _jobs(chip: Ints, target: int, first: Ints | int, words: Ints | int) -> Ints:
    """Job table; the caller keeps the order of chips ascending."""
    columns = (chip, target, first, words)
    table: Ints = np.stack([np.broadcast_to(c, chip.shape) for c in columns], axis=1)
    return table.astype(np.int64)


def _step(messages: Ints, jobs: Ints, terms: Ints) -> Step:
    """A step without its empty jobs."""
    keep = jobs[:, 3] > 0
    number = np.cumsum(keep) - 1
    terms = terms[keep[terms[:, 0]]].copy()
    terms[:, 0] = number[terms[:, 0]]
    return Step(messages, jobs[keep], terms)


def _terms(job: Ints, messages: Ints, chips: int, source: Ints, target: Ints, own: int,
           own_first: Ints | int, first: Ints | int = 0) -> Ints:  # fmt: skip
    """Terms that come from chip ``source`` to ``target``: its message, or the own words."""
    message = _number_of(messages, chips)[source * chips + target]
    at = np.where(source == target, own_first, first)
    columns = (job, message, own, at)
    table: Ints = np.stack([np.broadcast_to(c, job.shape) for c in columns], axis=1)
    return table.astype(np.int64)


def _ends(words: Ints | int, parts: int) -> Ints:
    """int64 [..., parts + 1]: borders of ``words`` split into parts that differ by at most one."""
    borders: Ints = np.asarray(words, np.int64)[..., None] * np.arange(parts + 1) // parts
    return borders


def _gathered(groups: Groups, pairs: tuple[Ints, Ints], step_nodes: bool, buffer: int,
              sizes: Ints, starts: Ints, target: int) -> Step:  # fmt: skip
    """Everybody's words ``sizes`` [chips] of ``buffer`` copied to word ``starts`` [chips]."""
    chips, chip = groups.chips, np.arange(groups.chips, dtype=np.int64)
    messages = _messages(pairs, buffer, 0, sizes[pairs[0]])
    count = groups.nodes if step_nodes else groups.members
    to = np.repeat(chip, count)
    k = np.tile(np.arange(count), chips)
    if step_nodes:
        source = k * groups.members + groups.member[to]
    else:
        source = groups.node[to] * groups.members + k
    jobs = _jobs(to, target, starts[source], sizes[source])
    return _step(messages, jobs, _terms(np.arange(len(to)), messages, chips, source, to, buffer, 0))


def all_reduce(groups: Groups, words: int) -> list[Step]:
    """Sums of ``words`` words on every chip: scatter inside and between nodes, gather back."""
    chips, members, nodes = groups.chips, groups.members, groups.nodes
    chip = np.arange(chips, dtype=np.int64)
    member, node = groups.member, groups.node
    borders = _ends(words, members)
    width = np.diff(borders)
    inside, between = groups.inside(), groups.between()
    out = _messages(inside, SOURCE, borders[member[inside[1]]], width[member[inside[1]]])
    to = np.repeat(chip, members)
    source = node[to] * members + np.tile(np.arange(members), chips)
    terms = _terms(to, out, chips, source, to, SOURCE, borders[member[to]])
    steps = [_step(out, _jobs(chip, PARTIAL, 0, width[member]), terms)]
    if nodes > 1:
        parts = _ends(width, nodes)  # [members, nodes + 1]
        size = np.diff(parts, axis=1)[member, node]  # [chips]: words each chip owns
        begin = parts[member, node]
        out = _messages(between, PARTIAL, begin[between[1]], size[between[1]])
        to = np.repeat(chip, nodes)
        source = np.tile(np.arange(nodes), chips) * members + member[to]
        terms = _terms(to, out, chips, source, to, PARTIAL, begin[to])
        steps.append(_step(out, _jobs(chip, SHARD, 0, size), terms))
        steps.append(_gathered(groups, between, True, SHARD, size, begin, PARTIAL))
    starts, sizes = borders[member], width[member]
    steps.append(_gathered(groups, inside, False, PARTIAL, sizes, starts, RESULT))
    return steps


def reduce_scatter(groups: Groups, words: int) -> list[Step]:
    """Sums of the ``words`` words for chip j, from word j * words of every source, on chip j."""
    chips, members, nodes = groups.chips, groups.members, groups.nodes
    chip = np.arange(chips, dtype=np.int64)
    member, node = groups.member, groups.node
    inside, between = groups.inside(), groups.between()
    out = _messages(inside, SOURCE, member[inside[1]] * words, words, nodes, members * words)
    job_chip, part = np.repeat(chip, nodes), np.tile(np.arange(nodes), chips)
    target = PARTIAL if nodes > 1 else RESULT
    jobs = _jobs(job_chip, target, part * words, words)
    job = np.repeat(np.arange(len(jobs)), members)
    to, part = job_chip[job], part[job]
    source = node[to] * members + np.tile(np.arange(members), len(jobs))
    terms = _terms(job, out, chips, source, to, SOURCE, (part * members + member[to]) * words,
                   part * words)  # fmt: skip
    steps = [_step(out, jobs, terms)]
    if nodes > 1:
        out = _messages(between, PARTIAL, node[between[1]] * words, words)
        to = np.repeat(chip, nodes)
        source = np.tile(np.arange(nodes), chips) * members + member[to]
        terms = _terms(to, out, chips, source, to, PARTIAL, node[to] * words)
        steps.append(_step(out, _jobs(chip, RESULT, 0, words), terms))
    return steps


def all_gather(groups: Groups, words: int) -> list[Step]:
    """Every chip's ``words`` words on every chip, those of chip j from word j * words on."""
    chips, members, nodes = groups.chips, groups.members, groups.nodes
    chip = np.arange(chips, dtype=np.int64)
    sizes, starts = np.full(chips, words, np.int64), chip * words
    steps = [_gathered(groups, groups.between(), True, SOURCE, sizes, starts, RESULT)]
    inside = groups.inside()
    out = _messages(inside, RESULT, groups.member[inside[0]] * words, words, nodes,
                    members * words)  # fmt: skip
    to = np.repeat(chip, chips)  # a job for every source chip of another member
    source = np.tile(chip, chips)
    other = groups.member[source] != groups.member[to]
    to, source = to[other], source[other]
    sender = groups.node[to] * members + groups.member[source]
    jobs = _jobs(to, RESULT, source * words, words)
    terms = _terms(np.arange(len(to)), out, chips, sender, to, RESULT, 0,
                   groups.node[source] * words)  # fmt: skip
    return [*steps, _step(out, jobs, terms)]


def broadcast(groups: Groups, words: int, root: int) -> list[Step]:
    """``words`` words of chip ``root`` on every chip: to one member of each node, then inside."""
    chips = groups.chips
    chip = np.arange(chips, dtype=np.int64)
    member = root % groups.members
    between, inside = groups.between(), groups.inside()
    first, then = between[0] == root, groups.member[inside[0]] == member
    out = _messages((between[0][first], between[1][first]), SOURCE, 0, words)
    to = chip[groups.member == member]
    copied = _terms(np.arange(len(to)), out, chips, np.full_like(to, root), to, SOURCE, 0)
    steps = [_step(out, _jobs(to, RESULT, 0, words), copied)]
    out = _messages((inside[0][then], inside[1][then]), RESULT, 0, words)
    to = chip[groups.member != member]
    source = groups.node[to] * groups.members + member
    copied = _terms(np.arange(len(to)), out, chips, source, to, RESULT, 0)
    return [*steps, _step(out, _jobs(to, RESULT, 0, words), copied)]


def all_to_all(groups: Groups, words: int) -> list[Step]:
    """Words j * words on of chip i come to word i * words on of chip j."""
    chips = groups.chips
    chip = np.arange(chips, dtype=np.int64)
    pairs = groups.everybody()
    out = _messages(pairs, SOURCE, pairs[1] * words, words)
    to, source = np.repeat(chip, chips), np.tile(chip, chips)
    jobs = _jobs(to, RESULT, source * words, words)
    terms = _terms(np.arange(len(to)), out, chips, source, to, SOURCE, to * words)
    return [_step(out, jobs, terms)]


def point_to_point(chips: int, source: int, destination: int, words: int) -> list[Step]:
    """The ``words`` words of chip ``source`` on chip ``destination``."""
    pair = (np.array([source], np.int64), np.array([destination], np.int64))
    out = _messages(pair, SOURCE, 0, words)
    terms = _terms(np.zeros(1, np.int64), out, chips, *pair, SOURCE, 0)
    return [_step(out, _jobs(pair[1], RESULT, 0, words), terms)]


def steps_of(operation: str, groups: Groups, words: int, root: int) -> list[Step]:
    """The steps of one of OPERATIONS; arguments are the caller's to check."""
    if operation == "broadcast":
        return broadcast(groups, words, root)
    build = {
        "all-reduce": all_reduce, "reduce-scatter": reduce_scatter,
        "all-gather": all_gather, "all-to-all": all_to_all,
    }  # fmt: skip
    return build[operation](groups, words)


def words_needed(operation: str, chips: int, words: int) -> tuple[int, int]:
    """Words of (source, result) on every chip; broadcast reads the root's source only."""
    wide = chips * words
    return {
        "all-reduce": (words, words), "reduce-scatter": (wide, words),
        "all-gather": (words, wide), "broadcast": (words, words), "all-to-all": (wide, wide),
    }[operation]  # fmt: skip
