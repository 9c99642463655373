"""How a prompt is fed: the way that takes the least time, of those there are programs for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs.running import Feeder
from programs.running.feeding import FedPart

#: Two stages and chunks of eight tokens; the host takes no time.
FEEDER = Feeder(
    stages=2,
    context=64,
    buckets=(64,),
    chunk=8,
    cycles={
        "prefill-64": 100,
        "decode-64": 130,
        "prompt-64": 60,
        "prompt-64-end": 80,
        "chunk-64": 300,
        "chunk-64-end": 330,
        "chunks-64": 170,
        "chunks-64-end": 190,
    },
    clock_hz=1e9,
    launch_seconds=0.0,
    token_seconds=0.0,
)


def entries(feeder: Feeder, first: int, tokens: int) -> list[str]:
    way = feeder.way(first, tokens)
    names = [name for name, _ in feeder.launches(way)]
    fed = feeder.feedings(way)
    assert [feeding.entry for feeding in fed] == names
    assert [feeding.logits for feeding in fed] == [False] * (len(fed) - 1) + [True]
    # Every position comes to every stage, in order, and the last one last.
    for stage in range(feeder.stages):
        starts = [f for f in fed if stage not in f.resting]
        seen = [f.positions[stage] + n for f in starts for n in range(f.tokens)]
        assert list(dict.fromkeys(seen)) == list(range(first, first + tokens))
        assert seen[-1] == first + tokens - 1
    return names


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, ["decode-64"]),
        (2, ["prompt-64"] * 2 + ["prompt-64-end"]),
        (7, ["prompt-64"] * 7 + ["prompt-64-end"]),
        (8, ["chunk-64-end"]),
        (9, ["chunk-64", "decode-64"]),  # a chunk and the rest: a second chunk costs more
        (24, ["chunks-64"] * 3 + ["chunks-64-end"]),
    ],
)
def test_the_soonest_way(tokens: int, expected: list[str]) -> None:
    assert entries(FEEDER, 0, tokens) == expected
    assert entries(FEEDER, 13, tokens) == expected


def test_stages_rest_behind_a_prompt_only_where_the_context_goes_on() -> None:
    """A stage that rests writes keys of a whole chunk, which must be nobody's."""
    assert entries(FEEDER, 33, 24)[0] == "chunk-64", "positions 57 to 63 are too few to rest in"
    assert entries(FEEDER, 32, 24)[0] == "chunks-64"


def test_the_host_waits_before_every_launch() -> None:
    slow = replace(FEEDER, launch_seconds=1e-6)
    assert entries(slow, 0, 24) == ["chunk-64"] * 2 + ["chunk-64-end"]
    assert entries(slow, 0, 3) == ["prefill-64"] * 2 + ["decode-64"]


@pytest.mark.parametrize("missing", ["chunk-64", "chunk-64-end", "chunks-64"])
def test_a_way_without_its_programs_is_none(missing: str) -> None:
    cycles = {name: cycles for name, cycles in FEEDER.cycles.items() if name != missing}
    for tokens in range(1, 40):
        assert missing not in entries(replace(FEEDER, cycles=cycles), 0, tokens)


@given(st.data())
def test_launches_are_counted_without_a_list_of_them(data: st.DataObject) -> None:
    buckets = [*sorted(data.draw(st.sets(st.integers(1, 90)))), 100]
    feeder = replace(FEEDER, buckets=buckets, stages=data.draw(st.integers(1, 4)))
    way = []
    for _ in range(data.draw(st.integers(1, 3))):
        tokens = data.draw(st.integers(1, 9))
        starts = data.draw(st.lists(st.integers(0, 100 - tokens), min_size=1, unique=True))
        together = feeder.stages > 1 and data.draw(st.booleans())
        way.append(FedPart(sorted(starts), tokens, together, data.draw(st.booleans())))
    assert feeder.tally(way) == Counter(feeder.launches(way))
