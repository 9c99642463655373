"""``lpu fabric``: what it prints, and functional collectives over actors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chip.spec import ChipSpec
from cluster.cli import run
from cluster.gpu import collective_seconds, gpu_time, load_gpu_spec
from cluster.processes import MappingError
from cluster.runs import CollectiveSettings, random_words, run_functional
from cluster.runs.collectives import expected_results
from interconnect.wiring import topology_of
from programs.running import BARRIER, LOOKAHEAD, StuckError

SPEC = ChipSpec()


def lpu(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON that a successful ``lpu fabric`` prints."""
    assert run(["fabric", *arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def functional(chips: int, nbytes: int, groups: int, sync: str, dtype: str = "int32") -> Any:
    """An all-reduce in ``groups`` processes (0: in this one)."""
    return run_functional(
        topology_of(chips),
        SPEC,
        CollectiveSettings(
            nbytes=nbytes,
            run=True,
            dtype=dtype,
            sync=sync,
            chips_per_actor=chips // groups if groups else None,
            in_process=groups == 0,
        ),
        seed=1,
    )


def same_digests(chips: int, nbytes: int) -> None:
    """Lookahead and barrier, in 1, 2 and 4 actors and in this process: one digest, NumPy's sums."""
    digests = set()
    for sync in (LOOKAHEAD, BARRIER):
        for groups in (0, 1, 2, 4):
            result = functional(chips, nbytes, groups, sync)
            assert result["equal"] and result["cycles"] == result["predicted_cycles"]
            assert result["actors"] == groups
            digests.add(result["digest"])
    assert len(digests) == 1


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(("chips", "nbytes"), [(8, 20_000), (64, 100_000)])
def test_one_digest_in_any_number_of_actors(local_ray: None, chips: int, nbytes: int) -> None:
    same_digests(chips, nbytes)


@pytest.mark.ray
@pytest.mark.long
def test_one_digest_at_264_chips(local_ray: None) -> None:
    same_digests(264, 264 * 1280)


@pytest.mark.parametrize(("chips", "words"), [(8, 8), (8, 64), (16, 3), (64, 5), (64, 64)])
@pytest.mark.cases(1)
def test_floating_sums_have_numpys_bits(chips: int, words: int) -> None:
    """By the tree of a node, one-shot over cables, and level by level."""
    assert functional(chips, words * 1280, 0, LOOKAHEAD, "fp32")["equal"]


@pytest.mark.parametrize(
    "operation", ["reduce-scatter", "all-gather", "broadcast", "all-to-all", "all-reduce"]
)
def test_what_numpy_is_asked_for(operation: str) -> None:
    """The oracle itself, against the definition of each operation word by word."""
    data = random_words(16, 32, "int32", 0)
    wide = data.astype(np.int64)
    results = expected_results(operation, data, 8)
    for chip in range(16):
        if operation == "all-reduce":
            expected = wide.sum(0)
        elif operation == "reduce-scatter":
            expected = wide[:, 2 * chip : 2 * chip + 2].sum(0)
        elif operation == "all-gather":
            expected = np.concatenate(list(wide))
        elif operation == "broadcast":
            expected = wide[0]
        else:
            expected = np.concatenate([wide[i, 2 * chip : 2 * chip + 2] for i in range(16)])
        assert (results[chip] == expected.astype(np.int32)).all()
    if operation == "all-reduce":
        for result in expected_results(operation, data, 8, topology_of(16)):
            assert (result == wide.sum(0).astype(np.int32)).all()


@pytest.mark.parametrize(
    ("chips", "cables", "hops"),
    [(8, 28, 1), (64, 336, 3), (72, 396, 3), (264, 1452, 3), (10_440, 57_420, 6)],
)
def test_info(capsys: pytest.CaptureFixture[str], chips: int, cables: int, hops: int) -> None:
    """Published: 28 cables in a node, 3 hops at 264 chips; 5 at 10,440, where the cables say 6."""
    facts = lpu(capsys, "info", "--chips", str(chips))
    assert (facts["chips"], facts["cables"], facts["diameter_hops"]) == (chips, cables, hops)
    assert facts["sram_bytes"] == chips * 230_686_720


def test_route(capsys: pytest.CaptureFixture[str]) -> None:
    facts = lpu(capsys, "route", "0", "200", "--chips", "264", "--vectors", "3")
    assert facts["hops"] == len(facts["route"]) == 3
    ends = [0, *(hop["to"] for hop in facts["route"])]
    assert [hop["chip"] for hop in facts["route"]] == ends[:-1] and ends[-1] == 200
    assert facts["cycles"] >= 3 * SPEC.hop_cycles + 2 * SPEC.send_spacing_cycles
    assert lpu(capsys, "route", "3", "3", "--chips", "8")["hops"] == 0


@pytest.mark.long
def test_collective_meets_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    """1 GiB within 90 % of the seven links' bandwidth; 320 bytes within 1.1 of the latency."""
    large = lpu(capsys, "collective", "--chips", "8", "--bytes", str(1 << 30))
    assert large["bounds"]["bandwidth"]["cycles"] >= 0.9 * large["latency_cycles"]
    small = lpu(capsys, "collective", "--chips", "8", "--bytes", "320", "--gpu", "h100")
    assert small["latency_cycles"] <= 1.1 * small["bounds"]["latency"]["cycles"]
    for plan in (large, small):
        assert plan["link_conflicts"] == 0 and plan["findings"] == []
        assert plan["latency_cycles"] >= max(b["cycles"] for b in plan["bounds"].values())
    assert small["gpu"]["best_ns"] <= small["gpu"]["p50_ns"] <= small["gpu"]["p99_ns"]


@pytest.mark.long
def test_one_chip_copies_and_no_link_bounds_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = lpu(capsys, "collective", "--chips", "1")
    assert plan["latency_cycles"] >= 820 and plan["vectors"] == 0
    assert [bound["cycles"] for bound in plan["bounds"].values()] == [0, 0]


@pytest.mark.parametrize(
    ("operation", "nbytes"),
    [
        ("all-reduce", "9000"),
        ("all-reduce", "90000"),
        ("all-gather", "50000"),
        ("reduce-scatter", "1"),
        ("broadcast", "4000"),
        ("all-to-all", "22000"),
    ],
)
def test_a_run_takes_the_cycles_that_were_planned(
    capsys: pytest.CaptureFixture[str], operation: str, nbytes: str
) -> None:
    asked = ("collective", "--chips", "16", "--op", operation, "--bytes", nbytes)
    facts, planned = lpu(capsys, *asked, "--run", "--in-process"), lpu(capsys, *asked)
    run = facts.pop("run")
    assert run["equal"] and run["dtype"] == "int32" and facts == planned
    assert run["cycles"] == run["predicted_cycles"] == facts["latency_cycles"]


def test_clocks(capsys: pytest.CaptureFixture[str]) -> None:
    report = lpu(capsys, "clocks", "--iterations", "2000")
    assert report["links"] == 7 and report["worst_drift_cycles"] <= report["budget_cycles"]
    assert report == lpu(capsys, "clocks", "--iterations", "2000")
    assert run(["fabric", "clocks", "--iterations", "2000", "--deskew-interval", "9000000"]) == 1
    assert "cycles apart at cycle" in capsys.readouterr().err


@pytest.mark.long
def test_sweep_writes_a_table_and_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table, picture = tmp_path / "sweep.csv", tmp_path / "sweep.svg"
    facts = lpu(capsys, "sweep", "--to", "5000", "--csv", str(table), "--plot", str(picture))
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["bytes"]) for row in rows] == [320, 640, 1280, 2560]
    assert [int(row["latency_cycles"]) for row in rows] == [
        row["latency_cycles"] for row in facts["rows"]
    ]
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("info", "--chips", "13"), "no wiring has this size"),
        (("info", "--chips", "missing.toml"), "no such file"),
        (("route", "0", "8"), "chips 0 to 7"),
        (("collective", "--op", "scan"), "--op scan"),
        (("collective", "--bytes", "0"), "--bytes 0"),
        (("collective", "--gpu", "abacus"), "abacus"),
        (("collective", "--algorithm", "magic"), "--algorithm magic"),
        (("collective", "--dtype", "fp32"), "only with --run"),
        (("clocks", "--budget", "0"), "--budget 0"),
        (("sweep", "--plot", "picture.gif"), ".png or .svg"),
        (("sweep", "--to", "400", "--csv", "/nowhere/at/all.csv"), "not written"),
        (("sweep", "--chips", "1", "--op", "point-to-point"), "nothing to send"),
        (("sweep", "--to", str(1 << 70)), "--to 11805"),
        (("collective", "--bytes", str(1 << 70)), "--bytes 11805"),
        (("collective", "--run", "--seed", "-1"), "--seed -1"),
        (("collective", "--run", "--bytes", str(1 << 30)), "buffers hold 10485760 bytes"),
        (("collective", "--run", "--chips", "288", "--bytes", "1280"), "264 or fewer"),
        (("route", "0", "1", "--vectors", str(1 << 70)), "--vectors 11805"),
        (("clocks", "--ppm", "nan"), "nan ppm"),
        (("clocks", "--ppm", "inf"), "inf ppm"),
        (("clocks", "--program-cycles", str(1 << 70)), "take 1000000000000 or fewer"),
        (("clocks", "--program-cycles", str(10**9), "--deskew-interval", "1"), "10000000 times"),
    ],
)
def test_bad_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert run(["fabric", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("verb", [("info",), ("route", "0", "1"), ("clocks",), ("collective",)])
def test_a_chip_with_fewer_links_than_the_wiring(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: tuple[str, ...]
) -> None:
    chip = tmp_path / "few.toml"
    chip.write_text('[chip]\nname = "few"\nwired_links = 5\n', encoding="utf-8")
    assert run(["fabric", *verb, "--chip", str(chip)]) == 2
    assert "few has 5 links wired, take 2 away" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [("route", "0", "2"), ("collective",), ("sweep",)])
def test_a_cable_list_whose_links_have_no_slots(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: tuple[str, ...]
) -> None:
    cables = tmp_path / "odd.toml"
    cables.write_text("chips = 3\ncables = [[0, 5, 1, 5], [1, 6, 2, 5]]\n", encoding="utf-8")
    assert run(["fabric", *verb, "--chips", str(cables)]) == 2
    assert "use links 0, 1, 2, 3, 4, 8, 9" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MappingError("no room"), StuckError("no chip can continue")])
def test_a_run_that_cannot_go_on_is_no_internal_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("cluster.runs.collectives.launch_everywhere", fail)
    assert run(["fabric", "collective", "--bytes", "4000", "--run"]) == 1
    assert capsys.readouterr().err.strip().endswith(f"lpu: {error}")


def test_gpu_model() -> None:
    """A ring moves 2 (n-1)/n of the tensor; more GPUs are later at the tail; seeds repeat."""
    h100 = load_gpu_spec("h100")
    base = collective_seconds(h100, "all-reduce", 8, 0)["ring"]
    more = collective_seconds(h100, "all-reduce", 8, 1 << 30)["ring"]
    bandwidth = h100.achieved_link_ratio * h100.nvlink_bytes_per_s
    assert more - base == pytest.approx(2 * 7 / 8 * 2**30 / bandwidth)
    small, large = (gpu_time("h100", "all-reduce", n, 320) for n in (2, 8))
    assert large.p99_s - large.best_s > small.p99_s - small.best_s
    assert gpu_time("h100", "all-reduce", 8, 320, seed=3) == gpu_time(
        "h100", "all-reduce", 8, 320, seed=3
    )
