"""A plan and the programs of its choice: one number of cycles, NumPy's words, on any fabric."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip.checker import check
from chip.isa import Op
from chip.program import expand
from chip.spec import PRESETS, ChipSpec
from interconnect.collectives import FabricCollective, compile_fastest, plan_collective
from interconnect.collectives.algorithms import algorithms_for
from interconnect.collectives.programs import OPERATIONS
from interconnect.vectors import check_fabric
from interconnect.wires import LINK_NUMBERS
from interconnect.wiring import Topology, active_nodes, named_topology, part_of, topology_of
from interconnect.wiring.topology import lpx_rack
from tests import examples
from tests.stands.fabric_runs import Machine, expected, small_pages, values

WORD = 1280


@pytest.fixture(autouse=True, scope="module")
def pages() -> Iterator[None]:
    with small_pages():
        yield


@lru_cache
def fabric(name: str) -> Topology:
    if name == "spares":
        rack = topology_of(72)
        return part_of(rack, active_nodes(rack, 2, [1, 3]))
    return lpx_rack() if name == "lpx" else topology_of(int(name))


def random_cables(directory: Path, chips: int, seed: int) -> Topology:
    """A file's fabric: a tree of random cables, and more of them while links are free."""
    rng = np.random.default_rng(seed)
    free = {c: [int(n) for n in rng.permutation(LINK_NUMBERS)] for c in range(chips)}
    cables = []
    for c in range(1, chips):
        other = int(rng.integers(c))
        cables.append([other, free[other].pop(), c, free[c].pop()])
    for _ in range(int(rng.integers(2 * chips))):
        a, b = (int(x) for x in rng.choice(chips, 2, replace=False))
        if free[a] and free[b]:
            cables.append([a, free[a].pop(), b, free[b].pop()])
    path = directory / "cables.toml"
    path.write_text(f"chips = {chips}\ncables = {cables}\n", encoding="utf-8")
    return named_topology(path)


def last_word_readable(made: FabricCollective) -> int:
    """From the instructions themselves: the last Write of any chip, and until it can be read."""
    rows = [expand(program) for program in made.programs]
    writes = [row["cycle"][row["op"] == Op.WRITE].max(initial=0) for row in rows]
    return int(max(writes)) + made.spec.write_cycles


def one_count(
    wiring: Topology,
    operation: str,
    words: int,
    dtype: type,
    spec: ChipSpec,
    algorithm: str | None = None,
) -> FabricCollective:
    """words: of the whole tensor; parts are words // chips, at least one."""
    part = 1 if operation in ("all-reduce", "broadcast") else wiring.chips
    each = max(1, words // part)
    add = Op.ADD_I32 if dtype is np.int32 else Op.ADD_F32
    made = compile_fastest(operation, wiring, each, spec, algorithm=algorithm, add=add)
    plan = plan_collective(wiring, operation, WORD * part * each, spec, algorithm=algorithm)
    assert plan.latency_cycles == made.cycles and plan.findings == []
    assert plan.algorithm == {"tree": "one-shot"}.get(made.algorithm, made.algorithm)
    assert plan.vector_hops == made.wires.vector_hops
    if made.algorithm != "tree":  # whose chips end with a sum nobody waits for
        assert last_word_readable(made) == made.cycles
        assert (plan.schedule.cycle == made.wires.cycle).all()
        assert (plan.schedule.directed_link == made.wires.directed_link).all()
    for program in made.programs:
        assert [str(f) for f in check(program, spec)] == []
    assert check_fabric(made.programs, made.program_of_chip, wiring.cables, spec) == []
    data = values(np.random.default_rng(words), made, dtype)
    if made.algorithm in ("tree", "one-shot") and dtype is np.float32:
        # whole numbers, and no minus zero: sums have the same bits in any order
        data = np.rint(np.clip(data, -1000, 1000)) + np.float32(0)
    machine = Machine(made, data)
    assert set(machine.launch().values()) == {plan.latency_cycles}
    for chip, want in enumerate(expected(made, data)):
        got = machine.result(chip, dtype)
        assert got.tobytes() == np.ascontiguousarray(want).tobytes(), f"chip {chip}"
    return made


@pytest.mark.long
@given(
    st.sampled_from(["2", "4", "8", "16", "24"]),
    st.sampled_from(OPERATIONS),
    st.integers(1, 90),
    st.sampled_from([np.int32, np.float32]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=examples(20), deadline=None)
def test_known_wirings(name: str, operation: str, words: int, dtype: type, random: object) -> None:
    names = (None, *algorithms_for(operation, fabric(name)))
    algorithm = names[random.randrange(len(names))]  # type: ignore[attr-defined]
    one_count(fabric(name), operation, words, dtype, ChipSpec(), algorithm)


@given(st.integers(2, 9), st.integers(0, 10_000), st.sampled_from(OPERATIONS), st.integers(1, 60))
@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_fabrics_from_files(
    tmp_path: Path, chips: int, seed: int, operation: str, words: int
) -> None:
    one_count(random_cables(tmp_path, chips, seed), operation, words, np.int32, ChipSpec())


@pytest.mark.parametrize(
    ("name", "operation", "words", "algorithm"),
    [
        ("64", "all-reduce", 64, None),
        ("64", "all-reduce", 5, "one-shot"),
        ("72", "broadcast", 40, "one-shot"),
        ("spares", "all-reduce", 64, None),
        ("spares", "all-reduce", 3, "one-shot"),
        ("spares", "broadcast", 30, None),
        ("64", "all-to-all", 64, "hierarchical"),
        ("264", "all-reduce", 1, None),
    ],
)
@pytest.mark.long
def test_large_fabrics(name: str, operation: str, words: int, algorithm: str | None) -> None:
    one_count(fabric(name), operation, words, np.int32, ChipSpec(), algorithm)


@pytest.mark.parametrize("operation", ["all-reduce", "broadcast"])
@pytest.mark.parametrize("algorithm", ["hierarchical", "one-shot"])
def test_short_frames(operation: str, algorithm: str) -> None:
    spec = PRESETS["groq-3-lp30"]
    one_count(fabric("16"), operation, 21, np.int32, spec, algorithm)
