"""Collectives of whole fabrics as real programs, against NumPy bit for bit and cycle for cycle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chip.checker import check
from chip.isa import Op
from chip.scheduling import CompileError
from chip.spec import PRESETS, ChipSpec
from interconnect.collectives import FabricCollective, compile_fabric_collective
from interconnect.collectives.programs import OPERATIONS
from interconnect.vectors import check_fabric
from interconnect.wires import LINK_NUMBERS, collisions, link_frames
from interconnect.wiring import Topology, named_topology, topology_of
from interconnect.wiring.topology import lpx_rack
from programs.artifact import collective_artifact, content_hash, load, save
from tests.stands.fabric_runs import Machine, expected, small_pages, values

SPEC = ChipSpec()
ADD = {np.int32: Op.ADD_I32, np.float32: Op.ADD_F32}


@pytest.fixture(autouse=True, scope="module")
def pages() -> Iterator[None]:
    with small_pages():
        yield


def prove(collective: FabricCollective) -> None:
    for program in collective.programs:
        assert [str(f) for f in check(program, collective.spec)] == []
    cables = collective.topology.cables
    found = check_fabric(collective.programs, collective.program_of_chip, cables, collective.spec)
    assert [str(f) for f in found] == []


def run(collective: FabricCollective, dtype: type, root: int = 0) -> None:
    prove(collective)
    data = values(np.random.default_rng(collective.topology.chips), collective, dtype)
    machine = Machine(collective, data)
    retired = machine.launch()
    assert set(retired.values()) == {collective.cycles}
    results, wanted = machine.results(dtype), expected(collective, data, root)
    for chip, (result, want) in enumerate(zip(results, wanted, strict=True)):
        assert result.tobytes() == np.ascontiguousarray(want).tobytes(), f"chip {chip}"


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize(
    ("chips", "words"), [(1, 3), (2, 5), (4, 9), (8, 1), (8, 83), (16, 50), (64, 96)]
)
@pytest.mark.cases(5)
def test_all_reduce_equals_numpy(chips: int, words: int, dtype: type) -> None:
    run(
        compile_fabric_collective("all-reduce", topology_of(chips), words, SPEC, add=ADD[dtype]),
        dtype,
    )


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("chips", [8, 16, 24])
@pytest.mark.parametrize("operation", OPERATIONS[1:])
@pytest.mark.cases(8)
def test_collectives_equal_numpy(operation: str, chips: int, dtype: type) -> None:
    root = chips - 3
    fabric = topology_of(chips)
    made = compile_fabric_collective(operation, fabric, 3, SPEC, add=ADD[dtype], root=root)
    run(made, dtype, root)


@pytest.mark.long
def test_a_system_of_264_chips() -> None:
    """33 nodes all to all: three hops between most chips, through other chips' programs."""
    collective = compile_fabric_collective("all-reduce", topology_of(264), 264, SPEC)
    assert collective.wires.hop.max() == 2
    run(collective, np.int32)


@pytest.mark.parametrize(("chips", "words"), [(16, 40), (256, 64)])
@pytest.mark.long
def test_short_frames_rotate_the_byte_planes(chips: int, words: int) -> None:
    """groq-3-lp30 has six cycles a frame, fewer than links."""
    wiring = lpx_rack() if chips == 256 else topology_of(chips)
    run(compile_fabric_collective("all-reduce", wiring, words, PRESETS["groq-3-lp30"]), np.int32)


def custom(directory: Path, chips: int, cables: list[list[int]]) -> Topology:
    path = directory / "cables.toml"
    path.write_text(f"chips = {chips}\ncables = {cables}\n", encoding="utf-8")
    return named_topology(path)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_custom_ring_forwards_between_edges(operation: str, tmp_path: Path) -> None:
    ring = custom(tmp_path, 7, [[c, 8, (c + 1) % 7, 0] for c in range(7)])
    collective = compile_fabric_collective(operation, ring, 8, SPEC, root=2)
    assert collective.wires.hop.max() == 2
    run(collective, np.int32, 2)


def meetings(spec: ChipSpec) -> list[tuple[int, int, int]]:
    """(sender, link, next link) whose Write and forwarding Read share cycles of the turn."""
    frames = link_frames(spec)
    turn = frames.turn_frames * spec.send_spacing_cycles
    turn_phase = (frames.phase - frames.rotation * spec.send_spacing_cycles) % turn
    return [
        (sender, link, onward)
        for link, quad in frames.received.items()
        for sender, onward in collisions(spec, turn_phase, turn, link, quad).tolist()
    ]


def line(directory: Path, sender: int, link: int, onward: int) -> Topology:
    """Chips 0 to 4 in a line; what goes from 0 on passes chip 1 by these links."""
    free = [n for n in LINK_NUMBERS if n != onward]
    rest = [[c, free[-1], c + 1, free[0]] for c in (2, 3)]
    return custom(directory, 5, [[0, sender, 1, link], [1, onward, 2, free[0]], *rest])


def test_unlike_cables_forward_safely_in_turns_of_one_frame(tmp_path: Path) -> None:
    """A Read that shares its cycles with the link's Writes is one vector, so one slice, behind."""
    met = meetings(SPEC)
    assert len(met) > 20
    for way in met:
        collective = compile_fabric_collective("all-to-all", line(tmp_path, *way), 3, SPEC)
        prove(collective)


def test_unlike_cables_are_refused_where_planes_rotate(tmp_path: Path) -> None:
    spec = PRESETS["groq-3-lp30"]
    way = meetings(spec)[0]
    with pytest.raises(CompileError, match=r"from link \d+ to link \d+"):
        compile_fabric_collective("all-to-all", line(tmp_path, *way), 3, spec)
    wired = custom(tmp_path, 2, [[0, 5, 1, 5]])
    with pytest.raises(CompileError, match="a cable on link 5"):
        compile_fabric_collective("broadcast", wired, 1, SPEC)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_lookahead_and_barrier_give_one_digest(operation: str) -> None:
    digests = []
    for sync in ("lookahead", "barrier"):
        collective = compile_fabric_collective(operation, topology_of(16), 18, SPEC)
        data = values(np.random.default_rng(9), collective, np.int32)
        machine = Machine(collective, data)
        assert set(machine.launch(sync).values()) == {collective.cycles}
        digests.append(machine.digest())
    assert digests[0] == digests[1]
    assert len(set(digests[0])) > 1


@pytest.mark.long
def test_other_latencies_give_legal_programs() -> None:
    for spec in (
        replace(SPEC, hop_cycles=400),
        replace(SPEC, hop_cycles=401, alu_cycles=2),
        replace(SPEC, send_spacing_cycles=25),
        replace(SPEC, read_cycles=2, write_cycles=5),
        replace(SPEC, reserved_slices_west=(), reserved_slices_east=(0, 5, 9)),
    ):
        run(compile_fabric_collective("all-reduce", topology_of(16), 37, spec), np.int32)


def test_artifacts_of_collectives_survive_a_file(tmp_path: Path) -> None:
    collective = compile_fabric_collective("all-gather", topology_of(24), 2, SPEC)
    data = values(np.random.default_rng(3), collective, np.int32)
    artifact = collective_artifact(collective, data)
    save(artifact, tmp_path / "c.lpu")
    assert content_hash(load(tmp_path / "c.lpu")) == content_hash(artifact)
    with pytest.raises(ValueError, match="use 4-byte values"):
        collective_artifact(collective, data[:, :1])


def test_equal_chips_share_programs() -> None:
    collective = compile_fabric_collective("broadcast", topology_of(16), 4, SPEC)
    assert len(collective.programs) < 16
    assert len(set(collective.program_of_chip)) == len(collective.programs)


@pytest.mark.parametrize(
    ("operation", "chips", "words", "reason"),
    [
        ("sum", 8, 1, "known are"),
        ("all-reduce", 8, 0, "0 words"),
        ("all-gather", 8, 1025, "8200 words of a buffer"),
        ("broadcast", 8, 8193, "8193 words"),
    ],
)
def test_impossible_collectives_say_so(operation: str, chips: int, words: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compile_fabric_collective(operation, topology_of(chips), words, SPEC)


def test_buffers_of_links_have_an_end(tmp_path: Path) -> None:
    """Three chips send to two through one link: six messages of 1,600 words."""
    with pytest.raises(CompileError, match=r"receives \d+ words .* its buffer holds 8192"):
        compile_fabric_collective("all-to-all", line(tmp_path, 0, 0, 8), 1600, SPEC)


def test_arguments_out_of_range_say_so() -> None:
    with pytest.raises(ValueError, match=r"chips are 0\.\.7"):
        compile_fabric_collective("broadcast", topology_of(8), 1, SPEC, root=8)
    with pytest.raises(ValueError, match="not MUL_F32"):
        compile_fabric_collective("all-reduce", topology_of(8), 1, SPEC, add=Op.MUL_F32)
