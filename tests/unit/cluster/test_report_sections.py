"""The numbers of a run file, against single instructions and the artifact itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chip.isa import Op
from chip.program import expand
from cluster.report import generation_run
from cluster.report.from_models import latency_section
from cluster.report.from_programs import bytes_read, sram_section
from cluster.report.run_file import WORD_KINDS, Run
from cluster.tracing import Launched
from programs.artifact import Artifact
from programs.models import architecture

ENTRY = "decode-64"


@pytest.fixture(scope="module")
def launches(artifact: Artifact) -> list[Launched]:
    cycles = artifact.predicted_cycles
    return [Launched("prefill-64", cycles["prefill-64"])] + [
        Launched(ENTRY, cycles[ENTRY], text) for text in "abc"
    ]


@pytest.fixture(scope="module")
def made(artifact: Artifact, launches: list[Launched]) -> Run:
    return generation_run(
        [("a", "b")], "title", artifact, launches, architecture("target"), "int8", 0, 2
    )


def test_utilisation_counts_instructions_and_vectors(artifact: Artifact, made: Run) -> None:
    rows = expand(artifact.program(ENTRY, 0))
    cycles = artifact.predicted_cycles[ENTRY]
    means = {family["name"]: family["mean"] for family in made["utilisation"]["families"]}
    west = int((rows["queue"] < 44).sum())
    assert means["MEM west"] == pytest.approx(west / 44 / cycles)
    vxm = int(((rows["op"] >= Op.MOV) & (rows["op"] <= Op.GE_F32)).sum())
    assert means["VXM"] == pytest.approx(vxm / 16 / cycles)
    sends = int((rows["op"] == Op.SEND).sum())
    wire = float(artifact.spec.cycles_per_vector)
    assert means["C2C send"] == pytest.approx(sends * wire / 7 / cycles)
    busy = made["links"]["busy"]
    assert len(busy) == 56 and {part["chip"] for part in busy} == set(range(8))
    assert np.mean([part["ratio"] for part in busy]) == pytest.approx(sends * wire / 7 / cycles)
    assert max(made["links"]["most"]) <= 1.0


def test_the_belt_has_the_launches_at_their_cycles(made: Run, launches: list[Launched]) -> None:
    (belt,) = made["belts"]
    ends = np.cumsum([launch.cycles for launch in launches]).tolist()
    assert [item["times"][-1] for item in belt["items"]] == ends
    assert [item["times"][0] for item in belt["items"]] == [0, *ends[:-1]]
    assert [item["label"] for item in belt["items"]] == ["launch 0", "a", "b", "c"]
    assert belt["stages"][:3] == ["compute 0", "exchange 0", "compute 1"]
    assert len(belt["stages"]) == 17


def test_the_sram_map_holds_the_image(artifact: Artifact, made: Run) -> None:
    words = dict(zip(WORD_KINDS, np.array(made["sram"]["words"]).sum(axis=0).tolist(), strict=True))
    assert sum(words.values()) == 88 * artifact.spec.words_per_slice
    image = {(s, a + i) for s, a, rows in artifact.memory[0] for i in range(len(rows))}
    bound = {
        (place, at + i)
        for group in ("inputs", "outputs")
        for places in artifact.bindings[group].values()
        for place, at, count in places
        for i in range(count)
    }
    held = words["weights and tables"] + words["weights and tables, rewritten"]
    assert held == len(image - bound)
    assert words["inputs"] + words["outputs"] == len(bound)
    reserved = len(artifact.spec.reserved_slices_west) + len(artifact.spec.reserved_slices_east)
    assert words["reserved"] == reserved * artifact.spec.words_per_slice


def test_the_sram_map_tells_what_programs_overwrite(artifact: Artifact) -> None:
    """One word of an image where a Write goes, one where a Scatter may go, one where neither."""
    rows = expand(artifact.program(ENTRY, 0))
    write, scatter = (rows[rows["op"] == op][0] for op in (Op.WRITE, Op.SCATTER))
    image = [
        (int(write["queue"]), int(write["a"])),
        (int(scatter["queue"]), int(scatter["lo"]) + 1),
        (3, 4000),
    ]
    word = np.zeros((1, 320), np.uint8)
    held = replace(artifact, memory=[[(queue, at, word) for queue, at in image]])
    table = np.array(sram_section(held, [ENTRY])["words"]).sum(axis=0)
    words = dict(zip(WORD_KINDS, table.tolist(), strict=True))
    assert words["weights and tables, rewritten"] == 2
    assert words["weights and tables"] == 1


def test_the_spike_is_the_compiled_cycles(artifact: Artifact, made: Run) -> None:
    (picture,) = made["latencies"]
    exact, *gpus = picture["series"]
    seconds = artifact.predicted_cycles[ENTRY] / artifact.spec.clock_hz
    assert exact["source"] == "exact" and exact["count"] == 3
    assert exact["least_s"] == exact["p99_s"] == exact["most_s"] == seconds
    assert max(exact["share"]) == 1.0
    for gpu in gpus:
        assert gpu["source"] == "estimated" and gpu["p99_s"] > gpu["p50_s"] > gpu["least_s"]
        assert sum(gpu["share"]) == pytest.approx(1.0)


def test_the_roofline_has_the_programs_own_bytes(artifact: Artifact, made: Run) -> None:
    rows = expand(artifact.program(ENTRY, 0))
    nbytes = 8 * 320 * int(np.isin(rows["op"], (Op.READ, Op.GATHER)).sum())
    assert bytes_read(artifact, ENTRY) == nbytes
    point, roof = made["roofline"]["points"][-1], made["roofline"]["machines"][-1]
    operations = architecture("target").flops_per_token(2)
    seconds = artifact.predicted_cycles[ENTRY] / artifact.spec.clock_hz
    assert point["ops_per_byte"] == pytest.approx(operations / nbytes)
    assert point["ops_per_s"] == pytest.approx(operations / seconds)
    assert point["ops_per_s"] < point["ops_per_byte"] * roof["bytes_per_s"] < roof["ops_per_s"]


def test_shares_of_a_histogram_add_up() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    values = random.lognormal(-8, 1, 999)
    made = latency_section("t", {"x": (values, "given"), "none": (values[:0], "given")}, "note")
    assert made is not None and len(made["series"]) == 1
    series = made["series"][0]
    assert sum(series["share"]) == pytest.approx(1.0)
    ordered = np.sort(values)
    assert series["p50_s"] == ordered[499] and series["p99_s"] == ordered[989]
    assert latency_section("t", {"none": (values[:0], "given")}, "note") is None
