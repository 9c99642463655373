"""The steps of collectives, played symbolically: who adds what to which word, and who copies it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interconnect.collectives import OWN, RESULT, SOURCE, collective_steps
from interconnect.collectives.algorithms import algorithms_for
from interconnect.collectives.steps import Step, group_sizes
from interconnect.wiring import topology_of

where = lru_cache(topology_of)

#: Words of a buffer by number; a word is a number whose hex digit c says how often chip c is in it.
Words = dict[int, int]


def play(steps: list[Step], source: list[Words]) -> list[Words]:
    """RESULT of every chip.  Every chip sends, and adds, what its buffers held before."""
    chips = range(len(source))
    buffers: dict[int, list[Words]] = {SOURCE: source, RESULT: [{} for _ in chips]}
    for step in steps:
        landed = []
        for chip, _, buffer, first, inner, outer, stride, _ in step.messages.tolist():
            held = buffers[buffer][chip]
            at = [first + o * stride + i for o in range(outer) for i in range(inner)]
            landed.append([held[word] for word in at])
        terms: list[list[list[int]]] = [[] for _ in step.jobs]
        for job, *term in step.terms.tolist():
            terms[job].append(term)
        written = []
        for job, (chip, first, words, groups, stride, count) in enumerate(step.jobs.tolist()):
            assert len(terms[job]) == count > 0 < words
            for g in range(groups):
                for w in range(words):
                    total = 0
                    for message, buffer, start, apart in terms[job]:
                        if message != OWN:
                            assert step.messages[message, 1] == chip
                        held = buffers[buffer][chip] if message == OWN else landed[message]
                        total += held[start + g * apart + w]
                    written.append((chip, first + g * stride + w, total))
        assert len({place[:2] for place in written}) == len(written)
        into = buffers.setdefault(step.target, [{} for _ in chips])
        for chip, word, total in written:
            into[chip][word] = total
    return buffers[RESULT]


SYMBOLIC = [1, 2, 4, 8, 16, 24, 72]  # and four racks of 72, three levels of groups


@pytest.mark.parametrize(
    ("chips", "words"), [(c, w) for c in SYMBOLIC for w in (1, 3, 23)] + [(288, 2)]
)
def test_every_chip_contributes_to_every_word_exactly_once(chips: int, words: int) -> None:
    fabric = where(chips)
    everyone = sum(1 << 4 * c for c in range(chips))
    for algorithm in algorithms_for("all-reduce", fabric):
        own = [dict.fromkeys(range(words), 1 << 4 * c) for c in range(chips)]
        done = play(collective_steps(fabric, "all-reduce", algorithm, words), own)
        assert done == [dict.fromkeys(range(words), everyone)] * chips, algorithm
    root = max(0, chips - 2)
    for algorithm in algorithms_for("broadcast", fabric):
        held: list[Words] = [{} for _ in range(chips)]
        held[root] = {w: w for w in range(words)}
        steps = collective_steps(fabric, "broadcast", algorithm, words, root=root)
        assert play(steps, held) == [{w: w for w in range(words)}] * chips, algorithm


@pytest.mark.parametrize(("chips", "words"), [(c, 2) for c in SYMBOLIC] + [(24, 5), (288, 1)])
@pytest.mark.long
def test_parts_come_to_their_chips(chips: int, words: int) -> None:
    """Words are numbered (chip they come from, word of its source)."""
    fabric, wide = where(chips), range(chips * words)

    def name(chip: int, word: int) -> int:
        return chip * 1_000_000 + word

    sums = [dict.fromkeys(wide, 1 << 4 * c) for c in range(chips)]
    done = play(collective_steps(fabric, "reduce-scatter", "hierarchical", words), sums)
    assert done == [dict.fromkeys(range(words), sum(1 << 4 * c for c in range(chips)))] * chips
    weighted = [{w: w for w in wide} for _ in range(chips)]
    done = play(collective_steps(fabric, "reduce-scatter", "hierarchical", words), weighted)
    assert done == [{w: chips * (c * words + w) for w in range(words)} for c in range(chips)]

    part = [{w: name(c, w) for w in range(words)} for c in range(chips)]
    done = play(collective_steps(fabric, "all-gather", "hierarchical", words), part)
    assert done == [{w: name(*divmod(w, words)) for w in wide}] * chips

    for algorithm in algorithms_for("all-to-all", fabric):
        whole = [{w: name(c, w) for w in wide} for c in range(chips)]
        done = play(collective_steps(fabric, "all-to-all", algorithm, words), whole)
        assert done == [
            {i * words + w: name(i, c * words + w) for i in range(chips) for w in range(words)}
            for c in range(chips)
        ], algorithm


@pytest.mark.long
@given(st.sampled_from([8, 16, 72, 264, 10_440]), st.integers(1, 40_000))
@settings(max_examples=30, deadline=None)
def test_shards_are_whole_words_as_even_as_possible(chips: int, words: int) -> None:
    """Every word has one owner; owners differ by a word for each level of groups at most."""
    fabric = where(chips)
    depth = len(group_sizes(fabric))
    gather = collective_steps(fabric, "all-reduce", "hierarchical", words)[depth]
    held = np.zeros(chips, np.int64)
    held[gather.messages[:, 0]] = gather.messages[:, 4]
    assert held.sum() == words
    assert held.max() - held.min() <= depth


def test_sums_of_one_shot_collectives_are_in_order() -> None:
    """A chip's own node comes first, then the senders in ascending order."""
    for step in collective_steps(where(24), "all-reduce", "one-shot", 11):
        job, message, buffer = step.terms[:, 0], step.terms[:, 1], step.terms[:, 2]
        sender = np.where(message == OWN, step.jobs[job, 0], step.messages[message, 0])
        before = (message == OWN) & (buffer != buffer[message == OWN].max(initial=0))
        key = np.where(before, -1, sender)
        same = job[1:] == job[:-1]
        assert (key[1:][same] > key[:-1][same]).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: collective_steps(where(8), "gather", "direct", 1), "known are"),
        (lambda: collective_steps(where(8), "all-reduce", "direct", 1), "'direct'"),
        (lambda: collective_steps(where(8), "broadcast", "one-shot", 0), "at least 1"),
        (lambda: collective_steps(where(8), "broadcast", "one-shot", 1, root=8), "of 8 chips"),
    ],
)
def test_what_does_not_exist_is_said(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
