"""Metrics without Prometheus: the table, what launches come to, series, the exporter's manners."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from prometheus_client.parser import text_string_to_metric_families

from chip.faults import LockstepViolation
from chip.isa import C2C_QUEUE, MXM_QUEUE, SXM_QUEUE, VXM_QUEUE, Op
from chip.program import expand
from chip.spec import ChipSpec
from cluster.errors import InputError
from cluster.listening import Listener
from cluster.metrics import Board, Exporter, OneEpoch, RunWatch, exported
from cluster.metrics.activity import RunActivity, activity_of
from cluster.metrics.board import Totals
from cluster.metrics.places import places
from cluster.metrics.table import COUNTER, METRICS, UNITS
from cluster.processes import Placement, SharedMapping, layout_of
from cluster.runs import run_generation
from interconnect.wiring import topology_of
from programs.artifact import Artifact
from programs.running import BARRIER, LOOKAHEAD, Generation
from tests import ROOT
from tests.stands.prometheus_server import free_ports


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read(), "utf-8")


def samples(board: Board) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a board by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in board.registry.collect()
        for sample in family.samples
    }


def total(board: Board, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have ``labels``."""
    return sum(
        value
        for (found, of), value in samples(board).items()
        if found == name and labels.items() <= dict(of).items()
    )


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_has_help_unit_and_a_row(metric) -> None:  # type: ignore[no-untyped-def]
    assert metric.name.startswith("lpu_") and metric.name.endswith("_" + metric.unit)
    assert metric.help.endswith(".") and metric.derived
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert f"| `{metric.exported}` | {metric.kind} |" in page


def test_exposition_names_help_and_units_of_the_table() -> None:
    from prometheus_client.openmetrics.exposition import generate_latest

    text = generate_latest(Board().registry).decode()
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}\n" in text
        assert f"# UNIT {metric.name} {metric.unit}\n" in text
        assert f"# TYPE {metric.name} {metric.kind}\n" in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend() -> None:
    from prometheus_client import generate_latest

    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(Board().registry),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_two_pieces_of_work_add_up() -> None:
    board = Board()
    for rises in ((3, 5, 5), (2,)):
        totals = Totals(board)
        for value in rises:
            totals.raise_to("lpu_launches", value)
    assert total(board, "lpu_launches_total") == 7


# --- what launches come to ------------------------------------------------------------------------


def unit_of(queue: int, op: int) -> str:
    if op < 32:
        return "icu"
    bounds = (VXM_QUEUE, "mem"), (MXM_QUEUE, "vxm"), (SXM_QUEUE, "mxm"), (C2C_QUEUE, "sxm")
    return next((name for bound, name in bounds if queue < bound), "c2c")


def test_activity_is_that_of_the_expansion(artifact: Artifact) -> None:
    """Against the definition of a program: its expansion into single instructions."""
    for entry in artifact.programs:
        program = artifact.program(entry, 3)
        found, singles = activity_of(program), expand(program)
        units = Counter(map(unit_of, singles["queue"].tolist(), singles["op"].tolist()))
        assert dict(zip(UNITS, found.instructions.tolist(), strict=True)) == {
            unit: units[unit] for unit in UNITS
        }
        sends = Counter(singles["queue"][singles["op"] == Op.SEND].tolist())
        assert found.vectors.tolist() == [sends[C2C_QUEUE + link] for link in range(16)]
        assert found.blocks.sum() == len(program.blocks)
        assert found.cycles == artifact.predicted_cycles[entry]


@given(some.lists(some.integers(0, 5), min_size=8, max_size=8))
def test_activity_is_linear_in_launches(artifact: Artifact, times: list[int]) -> None:
    entry = next(iter(artifact.programs))
    activity = RunActivity(artifact)
    once = activity.after({entry: np.ones(8, np.int64)})
    many = activity.after({entry: np.array(times)})
    assert (many.blocks == np.array(times)[:, None] * once.blocks).all()
    assert (many.cycles == np.array(times) * once.cycles).all()


@pytest.mark.parametrize("sync", [LOOKAHEAD, BARRIER])
def test_a_run_on_the_board(artifact: Artifact, sync: str) -> None:
    """The board at the end of a run, against the run's own result and the rings' counters."""
    board = Board()
    watch = RunWatch(board, "generate", ("generate", "lpu"))
    job = Generation((70, 221, 304), 5, sync=sync)
    placement = Placement(8, in_process=True)
    result = run_generation(artifact, job, placement, Listener(), time.perf_counter(), watch=watch)
    launches = len(job.prompt) - 1 + len(result.tokens)
    prefill = artifact.predicted_cycles["prefill-64"]
    cycles = sum(result.cycles_per_token) + prefill * (len(job.prompt) - 1)
    assert total(board, "lpu_tokens_total") == 5
    assert total(board, "lpu_launches_total") == launches
    assert total(board, "lpu_virtual_cycles_total") == cycles
    assert total(board, "lpu_chip_virtual_cycles_total") == 8 * cycles
    assert math.isclose(total(board, "lpu_virtual_seconds_total"), result.virtual_seconds)
    assert math.isclose(total(board, "lpu_virtual_tokens_per_second"), 5 / result.virtual_seconds)
    ratios = [v for (name, _), v in samples(board).items() if name == "lpu_link_busy_ratio"]
    vectors = total(board, "lpu_link_vectors_total", chip="0", link="8")
    spec = artifact.spec
    assert len(ratios) == 56 and 0 < max(ratios) < 1
    assert math.isclose(max(ratios), vectors * float(spec.cycles_per_vector) / cycles)
    assert total(board, "lpu_link_bytes_total", chip="0", link="8") == vectors * spec.packet_bytes
    images = artifact.memory
    assert total(board, "lpu_sram_used_bytes") == sum(
        rows.nbytes for image in images for *_, rows in image
    )
    assert total(board, "lpu_lockstep_violations_total") == 0


def test_vectors_are_those_the_rings_carried(artifact: Artifact) -> None:
    """Counted from the programs, against the counters of the rings that the chips really used."""
    from chip.engine.ring import TAIL
    from programs.decoder import Host
    from programs.running import Runner

    runner = Runner.alone(artifact, Host(artifact))
    runner.generate(Generation((70,), 2))
    done = RunActivity(artifact).after({"decode-64": np.full(8, 2)})
    for index, (a, link_a, b, link_b) in enumerate(artifact.cables):
        assert runner.rings.counts[2 * index, TAIL] == done.vectors[a, link_a]
        assert runner.rings.counts[2 * index + 1, TAIL] == done.vectors[b, link_b]


def test_metrics_change_no_digest(artifact: Artifact) -> None:
    job, placement = Generation((70, 221), 3), Placement(8, in_process=True)
    runs = [
        run_generation(artifact, job, placement, Listener(), 0.0, watch=watch)
        for watch in (None, RunWatch(Board(), "generate", ("generate", "lpu")))
    ]
    assert runs[0].digest == runs[1].digest


def test_skew_is_the_distance_of_the_chips_clocks(artifact: Artifact) -> None:
    board = Board()
    mapping = SharedMapping.private(layout_of(artifact, 1))
    with RunWatch(board, "run").watching(artifact, OneEpoch(mapping, {}), lambda _: "decode-64"):
        assert mapping.watched
        for chip in range(8):
            mapping.note_clock(chip, 1000 + 7 * chip)
        time.sleep(0.5)
        for chip in range(8):
            mapping.note_clock(chip, 2000)
    assert total(board, "lpu_lockstep_skew_cycles") == 49
    assert total(board, "lpu_virtual_cycles_total") == 2000


def test_a_violation_is_counted(artifact: Artifact) -> None:
    """Of this process as of an actor, whose error arrives as text."""
    from cluster.errors import RunError

    for number, error in enumerate(
        (LockstepViolation(1, 2, 3, 4, "late"), RunError("LockstepViolation: late"), RunError("no"))
    ):
        board = Board()
        mapping = SharedMapping.private(layout_of(artifact, 1))
        watch = RunWatch(board, "run")
        seen = OneEpoch(mapping, {})
        with pytest.raises(type(error)), watch.watching(artifact, seen, lambda _: "decode-64"):
            raise error
        assert total(board, "lpu_lockstep_violations_total", kind="arrival") == (number < 2)


# --- how many series ------------------------------------------------------------------------------


@pytest.mark.parametrize(("chips", "levels"), [(8, 8), (64, 64), (72, 9), (264, 33), (10_440, 145)])
def test_large_machines_share_series(chips: int, levels: int) -> None:
    wiring = topology_of(chips)
    where = places(chips, wiring.cables.tolist(), wiring.name)
    assert len(where.chips) == levels == len(set(where.chips))
    assert len(where.link_ends) == 2 * len(wiring.cables)
    assert len(where.links) == len(set(where.links)) <= 700
    # A chip's series is that of the links it sends on.
    of_link = [where.links[series][:2] for series in where.link_series]
    assert of_link == [where.chips[where.chip_series[chip]][:2] for chip, _ in where.link_ends]


def lpu(*arguments: str | Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **more},
    )


def wait_for_end(port: int, process: subprocess.Popen[str]) -> str:
    """Scrape until the run's work has ended; what the exporter said then."""
    for _ in range(600):
        assert process.poll() is None, process.communicate()
        try:
            text = scrape(port)
        except OSError:
            time.sleep(0.1)
            continue
        if not re.search(r"^lpu_run_end_timestamp_seconds 0\.0$", text, re.M):
            return scrape(port)
        time.sleep(0.1)
    raise AssertionError("the run did not end")


@pytest.mark.long
def test_264_chips_have_fewer_than_5000_series() -> None:
    port = free_ports(1)[0]
    process = lpu(
        "fabric",
        "collective",
        "--chips",
        "264",
        "--bytes",
        "2048",
        "--run",
        "--in-process",
        "--json",
        "--metrics-port",
        str(port),
    )
    text = wait_for_end(port, process)
    out, _ = process.communicate(timeout=60)
    facts = json.loads(out)
    assert process.returncode == 0 and facts["run"]["equal"]
    found = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert 500 < len(found) < 5000
    sent = sum(sample.value for sample in found if sample.name == "lpu_link_vectors_total")
    assert sent > 0
    cycles = {s.value for s in found if s.name == "lpu_chip_virtual_cycles_total"}
    assert cycles == {facts["run"]["cycles"]}


# --- the exporter ---------------------------------------------------------------------------------


def test_port_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"--metrics-port {port} on 127.0.0.1: Address already"),
            exported(Exporter(port, "127.0.0.1", 0)),
        ):
            raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "--metrics-port", "70000"), "--metrics-port 70000: use 1 to 65535"),
        (("generate", "--metrics-linger", "-1"), "--metrics-linger -1.0: use 0 to 86400"),
        (("generate", "--metrics-port", "9", "--metrics-host", "no.such.invalid"), "on no.such"),
        (("fabric", "collective", "--metrics-port", "9464"), "--metrics-port: without --run"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from cluster.cli import run

    code = run(list(arguments))
    out, error = capsys.readouterr()
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert words in error


@pytest.mark.long
def test_stays_until_it_was_scraped_twice() -> None:
    port = free_ports(1)[0]
    began = time.monotonic()
    seen: list[str] = []
    late = threading.Timer(0.5, lambda: seen.extend([scrape(port), scrape(port)]))
    with exported(Exporter(port, "127.0.0.1", 30)) as board:
        assert board is not None
        scrape(port)  # one before the end does not count
        board.add("lpu_launches", 5)
        late.start()
    assert 0.4 < time.monotonic() - began < 20
    late.join()
    assert "lpu_launches_total 5.0" in seen[0]
    with pytest.raises(OSError):
        scrape(port)


def test_stays_no_longer_than_asked() -> None:
    began = time.monotonic()
    with exported(Exporter(free_ports(1)[0], "127.0.0.1", 0.3)):
        pass
    assert 0.3 <= time.monotonic() - began < 10


@pytest.mark.long
def test_port_from_the_environment() -> None:
    port = free_ports(1)[0]
    process = lpu(
        "generate",
        "--in-process",
        "--chips",
        "1",
        "--max-new-tokens",
        "2",
        "--json",
        LPU_METRICS_PORT=str(port),
    )
    text = wait_for_end(port, process)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and len(json.loads(out)["tokens"]) == 2
    assert "--metrics-linger" in error and error.count("\n") == 1
    assert 'lpu_tokens_total{experiment="generate",platform="lpu"} 2.0' in text
    assert 'lpu_time_to_first_token_seconds_count{experiment="generate",platform="lpu"} 1.0' in text


def test_counters_never_fall(artifact: Artifact) -> None:
    """Two runs on one board, looked at while they go on."""
    board, watch_of = Board(), ("generate", "lpu")
    counters = {m.exported for m in METRICS if m.kind == COUNTER}
    before: dict[object, float] = {}
    stop = threading.Event()
    falls: list[object] = []

    def look() -> None:
        while not stop.wait(0.02):
            for key, value in samples(board).items():
                if key[0] in counters and value < before.get(key, 0.0):
                    falls.append(key)
                before[key] = value

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(2):
        watch = RunWatch(board, "generate", watch_of)
        run_generation(
            artifact,
            Generation((70,), 20),
            Placement(8, in_process=True),
            Listener(),
            0.0,
            watch=watch,
        )
    stop.set()
    looker.join()
    assert not falls and total(board, "lpu_tokens_total") == 40


@pytest.mark.ray
@pytest.mark.long
def test_tokens_and_their_rates_are_live_with_actors(
    artifact: Artifact, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at whenever a token comes: neither stays at nothing until the end."""
    monkeypatch.setattr("cluster.metrics.run_watch.PUBLISH_SECONDS", 0.05)
    board, seen = Board(), set()
    names = ("lpu_tokens_total", "lpu_virtual_tokens_per_second", "lpu_wall_tokens_per_second")

    class Looking(Listener):
        def token(self, token: int) -> None:
            seen.add(tuple(total(board, name) for name in names))

    run_generation(
        artifact,
        Generation((70,), 60),
        Placement(4),
        Looking(),
        0.0,
        watch=RunWatch(board, "generate", ("generate", "lpu")),
    )
    under_way = [found for found in seen if 0 < found[0] < 60]
    assert len({tokens for tokens, _, _ in under_way}) > 3
    assert all(virtual > 1000 and wall > 0 for _, virtual, wall in under_way)
    assert total(board, "lpu_tokens_total") == 60


def test_spec_of_a_user_is_custom(artifact: Artifact) -> None:
    from dataclasses import replace

    board = Board()
    own = replace(artifact, spec=replace(ChipSpec(), name="mine-4711"))
    mapping = SharedMapping.private(layout_of(own, 1))
    with RunWatch(board, "run").watching(own, OneEpoch(mapping, {}), lambda _: "decode-64"):
        pass
    assert total(board, "lpu_run_info", chip_type="custom", topology="node-8") == 1
