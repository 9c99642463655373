"""What a plan says, against its instructions one by one: phases, memory, units and bottleneck.

Two layers, each a stage on two chips.  Every block is expanded into single instructions; a phase
is what lies between two words becoming readable, found by the Writes to their places, and memory
is the set of words that some instruction touches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from chip.isa import Op
from chip.program import BlockTable, Program, expand
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from programs.models import ModelConfig
from programs.plans import (
    PHASES,
    Floor,
    Plan,
    bottleneck_of,
    check_plan,
    compile_plan,
    floor_of,
    try_changes,
)
from programs.plans.report import describe_machine, report_plan

SPEC = ChipSpec()
#: 640 = 2 tiles of 320 lanes, 4 heads of 80 lanes on each of 2 chips: no lane is padding.
FULL = ModelConfig(640, 2, 8, 8, 80, 1280, 640)
#: Padding everywhere, and keys that are spread over the lanes of their query heads.
PADDED = ModelConfig(700, 2, 8, 2, 64, 2000, 900)
#: Four experts behind a router.
EXPERTS = replace(PADDED, ffn=500, experts=4, experts_per_token=2)
CASES = [(FULL, "int8"), (FULL, "fp16"), (PADDED, "int8"), (PADDED, "fp16")]
NAMES = ["full-int8", "full-fp16", "padded-int8", "padded-fp16"]

Word = tuple[int, int]


@cache
def planned(config: ModelConfig, dtype: str, batch: int = 1) -> Plan:
    return compile_plan("small", config, SPEC, dtype=dtype, context=64, batch=batch, chips=4, tp=2)


def singles(plan: Plan, table: BlockTable) -> BlockTable:
    """The instructions of a table, one row each."""
    return expand(Program(table, plan.pipeline.gangs, [], 0))


def words(place: Place, count: int) -> set[Word]:
    return {(queue, place.address + i) for queue in place.queues for i in range(count)}


def places_of(plan: Plan, stage: int) -> dict[str, set[Word]]:
    """The words whose last Write ends a step of the critical path."""
    p, layout = plan.pipeline.code[stage].places, plan.layout
    digits = (*p.act.first, *p.act.second)
    most = max(layout.x_tiles, layout.q_tiles, layout.slot_tiles) * (1 if p.dtype == "int8" else 2)
    return {
        "activations": {w for place in digits for w in words(place, most)},
        "product": words(p.results, layout.q_tiles + 2 * layout.kv_tiles)
        | words(p.up, layout.slot_tiles)
        | words(p.logits, layout.vocab_blocks),
        "rotated": words(p.attention.rotated, layout.q_tiles) | words(p.narrow, 2 * layout.kv_tiles)
        if layout.replicate
        else set(),
        "attended": words(p.attention.outputs.at(3), layout.q_tiles),
        "hidden": words(p.hidden, layout.slot_tiles),
        "partial": words(p.reduce.partial, layout.x_tiles),
        "received": {w for r in p.reduce.received.values() for w in words(r, layout.x_tiles)},
        "x": words(p.x, layout.x_tiles),
    }


def steps(plan: Plan, stage: int, table: BlockTable) -> list[tuple[str, int]]:
    """What became readable, in order: a run of Writes to one place, and its last word's cycle."""
    names = places_of(plan, stage)
    found: list[tuple[int, str]] = []
    for row in table[table["op"] == Op.WRITE]:
        word = int(row["queue"]), int(row["a"])
        found += [
            (int(row["cycle"]) + SPEC.write_cycles, name)
            for name, own in names.items()
            if word in own
        ]
    found.sort()
    nexts = [name for _, name in found[1:]] + [""]
    return [(name, at) for (at, name), after in zip(found, nexts, strict=True) if after != name]


#: What a block does until a word of this place is readable.
STEP_PHASE = {
    "activations": "vxm",
    "product": "matmul",
    "rotated": "attention",
    "attended": "attention",
    "hidden": "vxm",
    "partial": "matmul",
    "received": "c2c",
    "x": "vxm",
}


def first_read_of_x(plan: Plan, stage: int, table: BlockTable) -> int:
    x = places_of(plan, stage)["x"]
    reads = table[table["op"] == Op.READ]
    return min(int(r["cycle"]) for r in reads if (int(r["queue"]), int(r["a"])) in x)


def counted(plan: Plan) -> dict[str, int]:
    """The phase table by instruction; each block and the head begin when x is first read."""
    found = dict.fromkeys(PHASES, 0)
    chips, program_of_chip = plan.pipeline.programs(plan.context, True)
    ends, begins = [], []
    for stage in range(2):
        whole = expand(chips[program_of_chip[2 * stage]])
        body = plan.body(stage)
        parts = [part.table for part in body.parts]
        if stage == 1:
            parts.append(plan.pipeline.code[1].scheduled(plan.context, None).table)
        for number, part in enumerate(parts):
            table = singles(plan, part)
            done = steps(plan, stage, table)
            if number == 2:
                done = done[: 1 + [name for name, _ in done].index("product")]
            at = first_read_of_x(plan, stage, table)
            spent: Counter[str] = Counter()
            before = ""
            for name, ready in done:  # products after the rotated words spread them over lanes
                spread = (before, name) == ("rotated", "product")
                spent["attention" if spread else STEP_PHASE[name]] += ready - at
                at, before = ready, name
            loads = Counter(int(q) for q in table["queue"][table["op"] == Op.LW])
            spent["weights_install"] = min(max(loads.values()), spent["matmul"])
            spent["matmul"] -= spent["weights_install"]
            for name, cycles in spent.items():
                found[name] += cycles
        begins.append(first_read_of_x(plan, stage, whole))
        out = "x" if stage == 0 else "product"
        ends.append(max(at for name, at in steps(plan, stage, whole) if name == out))
    found["vxm"] += begins[0]
    found["pipeline"] = begins[1] - ends[0]
    assert ends[1] == plan.cycles
    return found


@pytest.mark.parametrize(("config", "dtype"), CASES, ids=NAMES)
def test_every_phase_is_what_the_instructions_take(config: ModelConfig, dtype: str) -> None:
    plan = planned(config, dtype)
    assert report_plan(plan).phases == counted(plan)


def test_the_bottleneck_is_the_longest_phase() -> None:
    """FULL in int8: most of its cycles are in its four all-reduces of 8 vectors each.

    The floor has a hop, 8 vectors and 30 cycles for the sum, which is no part of this phase: the
    machine needs them all.
    """
    plan = planned(FULL, "int8")
    phases = counted(plan)
    assert max(phases, key=lambda name: phases[name]) == "c2c"
    assert phases["c2c"] == 4 * 855
    found = report_plan(plan).bottleneck
    assert 650 + 24 * 8 + 30 > 855
    assert (found.phases, found.machine_cycles) == (("c2c",), 4 * 855)
    assert str(found) == (
        f"all-reduces between the chips of a stage: {4 * 855 / plan.cycles:.0%} of a token's "
        "cycles; the machine needs 100% of these, the schedule adds 0%"
    )


def test_products_are_one_bottleneck_and_the_machine_needs_no_more_than_all() -> None:
    """Weights and their reloads answer to one term of the floor, which the head is part of."""
    floor = Floor(1, 300, 40, 30, 20, 10, 100)
    phases = dict.fromkeys(PHASES, 10) | {"weights_install": 200, "matmul": 150, "attention": 340}
    found = bottleneck_of(phases, floor)
    assert found.phases == ("weights_install", "matmul")
    assert (found.cycles, found.of_cycles, found.machine_cycles) == (350, 720, 350)
    assert "the machine needs 100% of these, the schedule adds 0%" in str(found)
    assert bottleneck_of(phases | {"attention": 351}, floor).machine_cycles == 40
    assert bottleneck_of(phases | {"vxm": 351}, floor).machine_cycles == 20
    assert bottleneck_of(phases | {"pipeline": 351}, floor).machine_cycles == 10
    assert bottleneck_of(phases | {"c2c": 351}, floor).machine_cycles == 30


def test_what_would_move_it_is_planned_first() -> None:
    """Exchanges: a nearer hop, faster links and smaller groups, each as ``lpu plan`` would say."""
    plan = planned(FULL, "int8")
    nearer, faster, smaller = try_changes(plan, report_plan(plan).bottleneck)
    assert nearer.change == "--set chip.hop_cycles=325"
    near = compile_plan("small", FULL, replace(SPEC, hop_cycles=325), context=64, chips=4, tp=2)
    assert (nearer.chips, nearer.cycles) == (4, near.cycles)
    assert plan.cycles - near.cycles == 5 * 325  # four exchanges and a handover
    assert faster.change == "--set chip.link_bytes_per_s=25000000000"
    twice = replace(SPEC, link_bytes_per_s=25_000_000_000, send_spacing_cycles=12)
    fast = compile_plan("small", FULL, twice, context=64, chips=4, tp=2)
    assert (faster.cycles, faster.interval_cycles) == (fast.cycles, fast.interval_cycles)
    assert smaller.change == "--chips 4 --tp 1"
    alone = compile_plan("small", FULL, SPEC, context=64, chips=4, tp=1)
    assert (smaller.cycles, smaller.problem) == (alone.cycles, "")


@pytest.mark.parametrize(
    ("phase", "dtype", "changes"),
    [
        ("weights_install", "int8", ["--chips 4 --tp 4"]),
        ("weights_install", "fp16", ["--dtype int8", "--chips 4 --tp 4"]),
        ("attention", "int8", ["--context 32", "--chips 4 --tp 4"]),
        ("vxm", "int8", ["--chips 4 --tp 4"]),
        (
            "pipeline",
            "int8",
            ["--set chip.hop_cycles=325", "--set chip.link_bytes_per_s=25000000000"],
        ),
    ],
)
def test_every_bottleneck_has_its_own_changes(
    phase: str, dtype: str, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(FULL, dtype)
    worst = bottleneck_of(dict.fromkeys(PHASES, 1) | {phase: 9}, Floor(1, 1, 1, 1, 1, 1, 1))

    def refuse(*_: object, **asked: object) -> Plan:
        raise CompileError(f"not {asked['tp']}")

    monkeypatch.setattr("programs.plans.bottleneck.compile_plan", refuse)
    tried = try_changes(plan, worst)
    assert [one.change for one in tried] == changes
    assert {one.cycles for one in tried} == {0}
    assert tried[-1].problem == ("not 2" if phase == "pipeline" else "not 4")


def test_a_chip_alone_exchanges_nothing() -> None:
    alone = compile_plan("small", replace(FULL, layers=1), SPEC, context=64, chips=1)
    found = report_plan(alone)
    assert found.phases["c2c"] == found.phases["pipeline"] == found.units["links_busiest"] == 0
    assert found.phases["vxm"] and found.phases["attention"] and found.phases["weights_install"]


def touched(plan: Plan, stage: int) -> tuple[set[Word], set[Word], set[Word]]:
    """The words that a chip of a stage touches: all, those loaded into planes, the caches'."""
    chips, program_of_chip = plan.pipeline.programs(plan.context, True)
    first = plan.pipeline.groups[stage] * plan.layout.tp
    table = expand(chips[program_of_chip[first]])
    reads, writes = (table[table["op"] == op] for op in (Op.READ, Op.WRITE))
    written = {(int(r["queue"]), int(r["a"])) for r in writes}
    wanted = {int(tag) for tag in table["want0"][table["op"] == Op.LW]}
    read = {(int(r["queue"]), int(r["a"])): int(r["tag"]) in wanted for r in reads}
    loaded = {word for word, is_loaded in read.items() if is_loaded} - written
    for r in table[(table["op"] == Op.GATHER) & np.isin(table["tag"], list(wanted))]:
        loaded |= {(int(r["queue"]), a) for a in range(int(r["lo"]), int(r["hi"]) + 1)}
    windows: dict[int, set[Word]] = {}
    for op in (Op.GATHER, Op.SCATTER):
        rows = table[table["op"] == op]
        windows[op] = {
            (int(r["queue"]), a) for r in rows for a in range(int(r["lo"]), int(r["hi"]) + 1)
        }
    every = written | set(read) | windows[Op.GATHER] | windows[Op.SCATTER]
    return every, loaded, windows[Op.SCATTER]


def one_and_one_hot(plan: Plan, stage: int) -> set[Word]:
    """Words that planes take and that are no weights of the model."""
    p = plan.pipeline.code[stage].places
    tables = words(p.constants.zero, 1) | words(p.constants.one_high, 1)
    for rounds in p.replicate:
        for block in rounds:
            count = block.groups * plan.layout.kv_tiles
            for half in block.weights.halves:
                tables |= words(half, count)
    return tables


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "dtype"),
    [*CASES, (EXPERTS, "int8"), (EXPERTS, "fp16")],
    ids=[*NAMES, "experts-int8", "experts-fp16"],
)
def test_memory_is_the_words_that_are_touched(config: ModelConfig, dtype: str) -> None:
    """The head's chip is the fullest.  Ones and one-hot matrices are tables, not weights."""
    plan = planned(config, dtype)
    found = report_plan(plan).sram
    every, loaded, caches = touched(plan, 1)
    tables = one_and_one_hot(plan, 1)
    assert found["weights"] == 320 * len(loaded - tables)
    assert found["kv_cache"] == 320 * len(caches)
    rest = 320 * len(every - (loaded - tables) - caches)
    # a slice's words below the highest of its quad or pair are taken, though nobody touches them
    slack = found["activations_and_tables"] - rest
    assert 0 <= slack <= (0.02 if config == FULL else 0.09) * found["activations_and_tables"]
    assert found["free"] == 88 * 2 * 4096 * 320 - 9 * 2 * 4096 * 320 - sum(
        found[name] for name in ("weights", "kv_cache", "activations_and_tables")
    )


def test_parts_of_an_ffn_weigh_what_they_load() -> None:
    """Chips too small for a whole FFN: its tiles do not divide evenly among its parts."""
    shallow = replace(SPEC, words_per_bank=160)
    plan = compile_plan("small", replace(PADDED, ffn=16000, heads=8), shallow, context=32)
    used = [code.places.placement.used_bytes() for code in plan.pipeline.code]
    stage = used.index(max(used))
    parts = {(b.part, b.parts) for b in plan.pipeline.stages[stage].blocks if b.kind == "ffn"}
    assert parts and plan.pipeline.split
    _, loaded, _ = touched(plan, stage)
    assert report_plan(plan).sram["weights"] == 320 * len(loaded - one_and_one_hot(plan, stage))


def test_memory_by_hand() -> None:
    """FULL without padding: what a chip holds of one layer and the head, in bytes."""
    attention, ffn, head = 4 * 640 * 320, 3 * 640 * 640, 640 * 320
    for dtype, item in (("int8", 1), ("fp16", 2)):
        found = report_plan(planned(FULL, dtype)).sram
        assert found["weights"] == item * (attention + ffn + head)
        assert found["kv_cache"] == 2 * 64 * 320 * 2  # keys and values in fp16
        assert found["reserved_for_the_system"] == 9 * 2 * 4096 * 320
    assert report_plan(planned(FULL, "int8", 3)).sram["kv_cache"] == 3 * 2 * 64 * 320 * 2


def test_the_roofline_by_hand() -> None:
    """64 streams of 320 B a cycle; two layers and the head, a chip's half of them."""
    weights = 2 * (4 * 640 * 640 + 3 * 640 * 1280) + 640 * 640
    for dtype, item, intensity in (("int8", 1, 2.0), ("fp16", 2, 1.0)):
        found = report_plan(planned(FULL, dtype))
        assert found.roofline_cycles == round(item * weights / 2 / (64 * 320))
        assert found.operations_per_byte == intensity


@pytest.mark.parametrize(("config", "dtype"), CASES, ids=NAMES)
def test_units_are_as_busy_as_their_instructions(config: ModelConfig, dtype: str) -> None:
    """The last stage, which has the head, is the slowest."""
    plan = planned(config, dtype)
    table, cycles = singles(plan, plan.body(1).whole()), plan.stage_cycles[1]
    assert plan.stage_cycles[0] < cycles
    issued = Counter(int(q) for q in table["queue"])
    loads = Counter(int(q) for q in table["queue"][table["op"] == Op.LW])
    x_tiles = 2 if config == FULL else 3
    sends = 2 * x_tiles * 4  # two all-reduces of fp32 words, four vectors each
    assert Counter(int(q) for q in table["queue"][table["op"] == Op.SEND]) == {128: sends}
    assert report_plan(plan).units == pytest.approx(
        {
            "mem_ports": sum(issued[q] for q in range(88)) / 88 / cycles,
            "vxm_busiest_alu": max(issued[q] for q in range(88, 104)) / cycles,
            "mxm_weights": max(loads[q] for q in (104, 106, 108, 110)) / cycles,
            "links_busiest": sends * 328 / (12.5e9) * 900e6 / cycles,
        }
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_service_by_hand(batch: int) -> None:
    """A belt's user waits for every sequence's beat, of two stages at least; or for all tokens."""
    plan = planned(FULL, "int8", batch)
    found, clock = report_plan(plan), SPEC.clock_hz
    belt, alone = max(batch, 2) * plan.interval_cycles, batch * plan.cycles
    assert (belt < alone) == (batch > 1)
    cycles = belt if batch > 1 else alone
    assert found.mode == ("conveyor belt" if batch > 1 else "one token at a time")
    assert found.per_user == pytest.approx(clock / cycles)
    assert found.total == pytest.approx(batch * clock / cycles)
    assert (found.cycles_per_token, found.interval_cycles) == (plan.cycles, plan.interval_cycles)


def test_instruction_words_are_counted_queue_by_queue() -> None:
    """A word and a NOP for each run of a block on each of its queues, a Repeat if it has more."""
    plan = planned(FULL, "int8")
    table = plan.body(1).whole()
    most = 0
    for row in table:
        gang = int(row["gang"])
        queues = 1 if gang < 0 else len(plan.pipeline.gangs[gang])
        most += queues * int(row["n2"]) * (3 if row["n1"] > 1 else 2)
    assert report_plan(plan).instruction_bytes == 16 * most
    assert np.isin(table["gang"], range(-1, len(plan.pipeline.gangs))).all()


@pytest.mark.parametrize(("config", "dtype"), CASES, ids=NAMES)
def test_no_schedule_is_below_the_floor(config: ModelConfig, dtype: str) -> None:
    """And the floor is of this plan: its stages, chips, numbers and positions."""
    plan = planned(config, dtype)
    found = report_plan(plan).floor
    assert found == floor_of(config, SPEC, tp=2, stages=2, dtype=dtype, context=64)
    assert found.cycles < plan.cycles
    assert found.boundaries == SPEC.hop_cycles


@pytest.mark.long
def test_a_full_belt_says_how_many_sequences_fit() -> None:
    """As many as a plan with that batch on the same machine is not refused for."""
    small = replace(SPEC, words_per_bank=260)
    stages = replace(FULL, layers=8)

    def belt(context: int, batch: int = 1) -> Plan:
        return compile_plan("small", stages, small, context=context, batch=batch, chips=8, tp=2)

    counts = []
    for context in (100, 512):
        plan = belt(context)
        found = report_plan(plan).belt
        assert found.sequences == len(plan.starts) == 4
        assert found.total == SPEC.clock_hz / plan.interval_cycles
        assert found.per_user == found.total / 4
        counts.append(found.that_fit)
        belt(context, found.that_fit)
        if found.that_fit < 4:
            with pytest.raises(CompileError):
                belt(context, found.that_fit + 1)
    assert counts[0] == 4 and 1 <= counts[1] < 4


def test_more_sequences_than_stages_give_no_more_tokens() -> None:
    plan = planned(FULL, "int8", batch=5)
    found = report_plan(plan).belt
    assert (found.sequences, found.that_fit) == (5, 5)
    assert found.total == SPEC.clock_hz / plan.interval_cycles == report_plan(plan).total
    assert found.per_user == found.total / 5


@pytest.mark.long
def test_groups_that_would_make_nothing_faster_idle() -> None:
    """Ten blocks on eight groups: some stage has two anyway, so six stages do as well."""
    plan = compile_plan("small", replace(FULL, layers=5), SPEC, context=64, chips=16, tp=2)
    assert describe_machine(plan) == "6 stages of 2 chips on 2 nodes, 4 idle"
    blocks = [len(stage.blocks) for stage in plan.pipeline.stages]
    assert (max(blocks), sum(blocks)) == (2, 10)
    programs, program_of_chip = plan.pipeline.programs(64, True)
    resting = [chip for chip, own in enumerate(program_of_chip) if not len(programs[own].blocks)]
    assert len(program_of_chip) == 16 and len(resting) == 4
    assert (report_plan(plan).belt.sequences, check_plan(plan) > 0) == (6, True)


def test_more_chips_are_tried_where_a_belt_waits_for_its_slowest_stage() -> None:
    plan = compile_plan("small", FULL, SPEC, context=64, chips=16, tp=8, batch=2)
    worst = bottleneck_of(dict.fromkeys(PHASES, 1) | {"vxm": 9}, Floor(1, 1, 1, 1, 1, 1, 1))
    (more,) = try_changes(plan, worst)
    assert (more.change, more.chips) == ("--chips 32", 32)
    assert more.interval_cycles < plan.interval_cycles and more.cycles > plan.cycles


def test_a_row_of_nodes_is_tried_where_handing_over_is_the_bottleneck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = compile_plan("small", replace(FULL, layers=1), SPEC, context=64, chips=16, tp=8)
    worst = bottleneck_of(dict.fromkeys(PHASES, 1) | {"pipeline": 9}, Floor(1, 1, 1, 1, 1, 1, 1))
    asked = []

    def note(*_: object, **options: object) -> Plan:
        asked.append(options["wiring"])
        return plan

    monkeypatch.setattr("programs.plans.bottleneck.compile_plan", note)
    changes = [one.change for one in try_changes(plan, worst)]
    assert changes[2:] == ["--wiring chain"] and asked == ["usual", "usual", "chain"]
