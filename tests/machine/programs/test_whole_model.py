"""Plans: legal, executed as predicted chip by chip, of bounded size, and honest about what fits."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.checker import check
from chip.engine import Chip, Rings, run_chips
from chip.linking import join, link, timing_part
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.collectives import group_path
from interconnect.wiring import topology_of, wire
from programs.decoder import ATTENTION, compile_decoder, partition_model
from programs.decoder.stages import Block, Stage, cut_less, deal, model_blocks, whole_again
from programs.models import (
    ARCHITECTURES,
    CheckpointError,
    ModelConfig,
    config_of,
    missing_kernels,
    random_checkpoint,
)
from programs.models.architectures import SHIPPED
from programs.plans import check_plan, compile_plan, run_timing, timing_programs
from tests import examples

SPEC = ChipSpec()
SMALL = ModelConfig(700, 5, 8, 2, 64, 2000, 900)
#: So little SRAM that LARGE needs several groups, and parts of FFNs.
LARGE = replace(SMALL, ffn=16000)
SHALLOW = replace(SPEC, words_per_bank=160)


def test_a_plan_is_executed_as_it_is_predicted() -> None:
    """Sequence of one and belt of several: every chip with a stage retires where the plan says."""
    plan = compile_plan("small", SMALL, SPEC, context=64, batch=3, chips=24)
    assert check_plan(plan) > 0 and plan.checked
    for belt, cycles in ((False, plan.cycles), (True, plan.interval_cycles)):
        done = run_timing(plan, timing_programs(plan, belt), threads=2)
        assert set(done.retired.tolist()) == {cycles}


def test_a_plan_takes_the_cycles_of_the_compiled_model() -> None:
    """The same shape with weights: the plan's cycles and the artifact's are one number."""
    model = partition_model(random_checkpoint(SMALL, 0), 8, "int8")
    plan = compile_plan("small", SMALL, SPEC, context=64, chips=8)
    artifact = compile_decoder(model, SPEC, 64)
    assert artifact.predicted_cycles["decode-64"] == plan.cycles


def test_timing_programs_have_the_effects_of_linked_ones() -> None:
    """The same digest, clock and vectors as the loader's program, on two chips without data."""
    model = partition_model(random_checkpoint(replace(SMALL, layers=1), 0), 2, "int8")
    artifact = compile_decoder(model, SPEC, 64, weights=False)
    program = artifact.program("decode-64", 0)
    joined = join([(timing_part(program, SPEC), 0)], program.cycles)
    digests = []
    for linked in (link(program, SPEC), joined):
        rings = Rings.allocate(2)
        chips = [Chip(SPEC, number, data=False) for number in range(2)]
        for chip in chips:
            wire(chip, artifact.cables)
            chip.begin(linked, 0)
        run_chips(chips, rings)
        assert [chip.retired_cycles for chip in chips] == [program.cycles] * 2
        digests.append([chip.digest_sums.tolist() for chip in chips])
    assert digests[0] == digests[1]
    assert link(program, SPEC).elements == joined.elements


@pytest.mark.long
def test_too_little_memory_splits_ffns_or_is_refused() -> None:
    plan = compile_plan("small", LARGE, SHALLOW, context=32)
    assert plan.chips > 8 and plan.pipeline.split
    check_plan(plan)
    fewer = plan.chips - 8
    with pytest.raises(CompileError, match=f"use --chips {plan.chips}") as refused:
        compile_plan("small", LARGE, SHALLOW, context=32, chips=fewer)
    text = str(refused.value)
    assert f"does not fit {fewer} chips" in text and "B more" in text and "\n" not in text


@pytest.mark.long
@pytest.mark.parametrize(("asked", "batch"), [(512, 5), (400, 6)])
@pytest.mark.cases(1)
def test_too_long_a_context_names_the_longest(asked: int, batch: int) -> None:
    """By how much it is too long; the context that the refusal names fits, one more does not."""
    config = LARGE
    with pytest.raises(CompileError, match="fit no number of") as refused:
        compile_plan("small", config, SHALLOW, context=asked, batch=batch)
    text = str(refused.value)
    found = re.search(r"([\d,]+) bytes too many.* use --context (\d+) or less", text)
    assert found is not None and int(found[1].replace(",", "")) > 0 and "\n" not in text
    longest = int(found[2])
    check_plan(compile_plan("small", config, SHALLOW, context=longest, batch=batch))
    with pytest.raises(CompileError, match="fit no number of"):
        compile_plan("small", config, SHALLOW, context=longest + 1, batch=batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_plan_of_a_context_beyond_a_bank(batch: int) -> None:
    """Caches in segments: legal, and executed as predicted, one sequence or a belt of several."""
    spec = replace(SPEC, words_per_bank=192)
    plan = compile_plan("small", SMALL, spec, context=500, batch=batch)
    assert len(plan.pipeline.code[0].places.cache_maps) > 1
    assert check_plan(plan) > 0
    for belt, cycles in ((False, plan.cycles), (True, plan.interval_cycles)):
        done = run_timing(plan, timing_programs(plan, belt), threads=2)
        assert set(done.retired[done.retired > 0].tolist()) == {cycles}


def test_twice_the_layers_schedule_no_more_blocks() -> None:
    """Equal blocks are scheduled once, however many layers and stages there are."""
    once = compile_plan("small", replace(SMALL, layers=4), SPEC, context=64, chips=16)
    twice = compile_plan("small", replace(SMALL, layers=8), SPEC, context=64, chips=16)
    more = compile_plan("small", replace(SMALL, layers=8), SPEC, context=64, chips=32)
    scheduled = [len(p.pipeline.code[0].known) for p in (once, twice, more)]
    assert scheduled[1] <= scheduled[0] + 8 and scheduled[2] <= scheduled[0]


def test_unsupported_architectures_are_refused_in_one_line() -> None:
    name = "opt-66b"
    with pytest.raises(CheckpointError, match="there are no kernels; use one of llama-2-7b") as e:
        config_of(name)
    for lacking in missing_kernels(ARCHITECTURES[name]):
        assert lacking in str(e.value)


def cheapest_dearest(
    blocks: tuple[Block, ...], stages: int, cost: Callable[[Stage], float]
) -> float:
    """Over all ways to cut ``blocks``: the least that the dearest stage can cost."""
    n = len(blocks)
    reach = [cost(Stage(blocks[i:], True)) for i in range(n + 1)]  # the last stage from block i
    for _ in range(stages - 1):
        reach = [
            min(
                (max(cost(Stage(blocks[i:j], False)), reach[j]) for j in range(i + 1, n + 1)),
                default=float("inf"),
            )
            for i in range(n + 1)
        ]
    return reach[0]


@settings(max_examples=examples(60), deadline=None)
@given(
    layers=st.integers(1, 9),
    parts=st.integers(1, 3),
    stages=st.integers(1, 12),
    room=st.integers(1, 12),
    head=st.integers(0, 3),
)
def test_dealing_keeps_order_and_room(
    layers: int, parts: int, stages: int, room: int, head: int
) -> None:
    """All blocks once and in order, no stage over its room, none without blocks but the head's."""
    blocks = model_blocks(layers, parts)

    def cost(stage: Stage) -> float:
        weights = (3 if b.kind == ATTENTION else 2 / b.parts for b in stage.blocks)
        return sum(weights) + head * stage.head

    dealt = deal(blocks, stages, cost, lambda stage: cost(stage) <= room)
    best = cheapest_dearest(blocks, stages, cost)
    assert (dealt is None) == (best > room)
    if dealt is None:
        return
    assert max(map(cost, dealt)) <= best * 1.002 + 1e-9  # the bisection ends a thousandth above
    assert len(dealt) == stages
    assert tuple(b for stage in dealt for b in stage.blocks) == blocks
    assert [stage.head for stage in dealt] == [False] * (stages - 1) + [True]
    assert all(cost(stage) <= room for stage in dealt)
    assert all(stage.blocks for stage in dealt[:-1])
    joined = whole_again(dealt)
    assert sum(b.span / b.parts for s in joined for b in s.blocks if b.kind != ATTENTION) == (
        pytest.approx(layers)
    )
    for stage in joined:  # what is computed together is one block
        assert not any(a.layer == b.layer and b.part for a, b in pairwise(stage.blocks))
    less = cut_less(blocks, dealt, cost, lambda stage: cost(stage) <= room)
    assert less is not None
    assert tuple(b for stage in less for b in stage.blocks) == blocks
    assert len(less) == stages
    assert max(map(cost, less)) <= max(map(cost, dealt))
    assert cut_ffns(less) == fewest_cuts(blocks, stages, cost, max(map(cost, dealt)))


def cut_ffns(stages: list[Stage]) -> int:
    """Stages that end inside an FFN."""
    return sum(bool(s.blocks) and s.blocks[-1].part + 1 < s.blocks[-1].parts for s in stages)


def fewest_cuts(
    blocks: tuple[Block, ...], stages: int, cost: Callable[[Stage], float], limit: float
) -> float:
    """The fewest stages that end inside an FFN, none over ``limit``, by trying all."""

    @cache
    def rest(at: int, left: int) -> float:
        if left == 1:
            return 0 if cost(Stage(blocks[at:], True)) <= limit else math.inf
        ways = [math.inf]
        for end in range(at + 1, len(blocks) + 1):
            stage = Stage(blocks[at:end], False)
            if cost(stage) <= limit:
                ways.append(cut_ffns([stage]) + rest(end, left - 1))
        return min(ways)

    return rest(0, stages)


@pytest.mark.long
@pytest.mark.parametrize(
    ("chips", "tp", "left"),
    [
        *[(8, 2, 0), (24, 4, 0), (264, 8, 0), (576, 8, 0), (1440, 8, 0)],
        # Groups of one or two chips: the next group in order leads out of a node too soon.
        *[(40, 1, 0), (56, 2, 0), (64, 1, 5), (104, 2, 1)],
    ],
)
def test_groups_of_a_path_are_joined_by_cables(chips: int, tp: int, left: int) -> None:
    wiring = topology_of(chips)
    groups = chips // tp - left
    path = group_path(wiring, tp, groups)
    assert len(set(path)) == len(path) == groups
    assert set(path) <= set(range(chips // tp))
    ends = wiring.cables[:, ::2] // tp
    joined = {tuple(sorted(pair)) for pair in ends.tolist()}
    assert all(tuple(sorted(pair)) in joined for pair in pairwise(path))


def test_pieces_that_are_legal_alone_are_legal_together() -> None:
    """What ``check_plan`` checks in pieces, the checker finds legal as whole programs too."""
    plan = compile_plan("small", SMALL, SPEC, context=64, chips=32)
    programs, _ = plan.pipeline.programs(64, True)
    for program in programs:
        assert [str(f) for f in check(program, SPEC)] == []
    assert len({p.cycles for p in programs}) == 1 and programs[0].cycles == plan.cycles


@pytest.mark.parametrize("tiles", [28, 52])
def test_x_may_be_as_many_words_as_it_likes(tiles: int) -> None:
    """A norm reads its factor once a word, also when there are more than fit before its digits."""
    config = ModelConfig(320 * tiles, 1, 8, 8, 40, 320, 320)
    plan = compile_plan("wide", config, SPEC, context=64, tp=2)
    assert plan.layout.x_tiles == tiles and check_plan(plan) > 0


PLANNED = [
    (name, context)
    for name, shape in ARCHITECTURES.items()
    # no number of these chips holds an eighth of the experts of a layer of the largest
    if not missing_kernels(shape) and name != "deepseek-v3"
    for context in (2048, 8192)
    if context == 2048 or name not in {*SHIPPED, "qwen3-235b", "deepseek-v2-lite"}  # enough once
]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "context"), PLANNED)
def test_every_known_architecture_is_planned(name: str, context: int) -> None:
    _, config = config_of(name)
    context = min(context, config.max_position)
    plan = compile_plan(name, config, SPEC, context=context)
    check_plan(plan)
    programs = timing_programs(plan)
    done = run_timing(plan, programs)
    used = np.array([program is not None for program in programs])
    assert set(done.retired[used].tolist()) == {plan.cycles}


#: Compiles and checks a plan of the shape of a 70B model; prints the CPU seconds and the bytes
#: beyond those of a process that has compiled nothing, after compiling and after checking too.
_MEASURED = """
import json, sys
from pathlib import Path
from time import process_time
from chip.spec import ChipSpec
from programs.models import ModelConfig
from programs.plans import check_plan, compile_plan

def spent():  # getrusage would begin with the memory of the parent
    status = Path("/proc/self/status").read_text()
    return process_time(), 1024 * int(status.split("VmHWM:")[1].split()[0])

layers, chips = map(int, sys.argv[1:])
config = ModelConfig(8192, layers, 64, 8, 128, 28672, 128256, max_position=4096)
begun = spent()
plan = compile_plan("measured", config, ChipSpec(), context=2048, chips=chips or None)
compiled = spent()
check_plan(plan)
print(json.dumps([at - began for now in (compiled, spent()) for at, began in zip(now, begun)]))
"""


def _measured(layers: int, chips: int) -> NDArray[np.float64]:
    """[compiled, checked too] x [CPU seconds, bytes] in a process of its own; best of 3."""
    command = [sys.executable, "-c", _MEASURED, str(layers), str(chips)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    least: NDArray[np.float64] = np.array(runs, np.float64).min(axis=0).reshape(2, 2)
    return least


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_compiling_grows_no_faster_than_the_model_and_the_machine() -> None:
    """Twice the layers on the chips they need: less than twice the memory, at most twice the
    time.  Twice the chips for one model: at most 2.2 times of both.
    """
    once, twice = _measured(40, 0), _measured(80, 0)
    given, wide = _measured(80, 504), _measured(80, 1008)
    print(f"layers {(twice / once).tolist()}, chips {(wide / given).tolist()} of {once.tolist()}")
    assert (twice <= 2 * once).all() and (twice[:, 1] < 2 * once[:, 1]).all()
    assert (wide <= 2.2 * given).all()
