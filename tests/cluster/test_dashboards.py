"""Dashboards, rules and alerts against a real Prometheus that scrapes real runs."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from chip.isa import C2C_QUEUE, Op
from chip.program import Program, new_blocks
from chip.spec import ChipSpec
from cluster.metrics import Board, Exporter, exported
from cluster.metrics.table import HISTOGRAM, METRICS
from programs.artifact import Artifact, save
from tests.stands.prometheus_server import DASHBOARDS, SHIPPED, Prometheus, free_ports, prometheus

ROOT = DASHBOARDS.parent
RULES = SHIPPED.parent / "rules"
JSON = DASHBOARDS / "grafana" / "dashboards"

HAS_PROMETHEUS = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian: apt-get install prometheus)",
)


def needs_prometheus(test: Callable[..., None]) -> Callable[..., None]:
    """A test with a real Prometheus: a long one, skipped where there is none."""
    return cast(Callable[..., None], pytest.mark.long(HAS_PROMETHEUS(test)))


# --- what is shipped ------------------------------------------------------------------------------


def test_dashboards_are_what_their_script_writes(tmp_path: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="install the extra 'dashboards'")
    subprocess.run([sys.executable, DASHBOARDS / "generate.py", tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in JSON.iterdir()}


def panels(name: str) -> list[dict[str, Any]]:
    board = json.loads((JSON / f"{name}.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


NAMES = sorted(path.stem for path in JSON.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_whole(name: str) -> None:
    board = json.loads((JSON / f"{name}.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and board["uid"] == f"lpu-{name}"
    for panel in panels(name):
        assert panel["title"] and panel["description"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0
        assert all(t["datasource"]["uid"] == "${datasource}" for t in panel["targets"])


def test_queries_and_rules_know_only_metrics_of_the_table() -> None:
    known = {metric.exported for metric in METRICS}
    for metric in METRICS:
        if metric.kind == HISTOGRAM:
            known |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    texts = [target["expr"] for name in NAMES for p in panels(name) for target in p["targets"]]
    rules = yaml.safe_load((RULES / "lpu.rules.yml").read_text())["groups"]
    texts += [rule["expr"] for group in rules for rule in group["rules"]]
    used = {word for text in texts for word in re.findall(r"\blpu_\w+", text)}
    assert used <= known and len(used) > 25


def test_compose_and_provisioning_name_files_that_exist() -> None:
    compose = yaml.safe_load((DASHBOARDS / "compose.yml").read_text())
    for service in compose["services"].values():
        assert service["network_mode"] == "host"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DASHBOARDS / source).exists(), volume
    provisioning = DASHBOARDS / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())
    interval = yaml.safe_load(SHIPPED.read_text())["global"]["scrape_interval"]
    assert source["datasources"][0]["jsonData"]["timeInterval"] == interval
    provider = yaml.safe_load((provisioning / "dashboards/lpu.yml").read_text())["providers"][0]
    assert provider["options"]["path"] == "${LPU_DASHBOARDS}"
    assert "LPU_DASHBOARDS" in compose["services"]["grafana"]["environment"]


@needs_prometheus
def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    # Ray's link may point to a session that is over, which promtool takes for a fault.
    text = SHIPPED.read_text().replace("/tmp/ray/", str(tmp_path / "none") + "/")
    shutil.copytree(RULES, tmp_path / "rules")
    (tmp_path / "prometheus.yml").write_text(text)
    for check in (
        ["check", "config", tmp_path / "prometheus.yml"],
        ["check", "rules", RULES / "lpu.rules.yml"],
        ["test", "rules", RULES / "lpu.rules.test.yml"],
    ):
        done = subprocess.run(
            ["promtool", *map(str, check)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    """Each fires in one of promtool's tests and is silent in another."""
    rules = yaml.safe_load((RULES / "lpu.rules.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule}
    tests = yaml.safe_load((RULES / "lpu.rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


# --- real runs, a real Prometheus -----------------------------------------------------------------


@contextlib.contextmanager
def started(port: int, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A run that is exported on ``port``; gone afterwards whatever happens."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cluster.cli",
            *map(str, arguments),
            "--json",
            "--metrics-port",
            str(port),
            "--metrics-linger",
            "60",
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, error = process.communicate(timeout=200)
    assert process.returncode == code, error
    return out


RUNS = (
    ("generate", "--in-process", "--max-new-tokens", "192", "--ignore-eos"),
    (
        "experiment",
        "speculative",
        "--in-process",
        "--gpu-nodes",
        "2",
        "--kill-after",
        "2",
        "--max-new-tokens",
        "12",
    ),
    ("experiment", "load", "--requests", "300"),
    ("experiment", "disaggregated", "--requests", "100"),
    ("experiment", "agentic", "--requests", "4"),
)


@dataclass(frozen=True)
class Watched:
    """A Prometheus that has scraped ``RUNS``, what those printed, and their ports and more."""

    server: Prometheus
    outs: list[str]
    ports: list[int]

    def instance(self, run: int) -> str:
        """A matcher of the run's series."""
        return f'instance="127.0.0.1:{self.ports[run]}"'


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The runs of ``RUNS``, scraped."""
    ports = free_ports(len(RUNS) + 4)
    with prometheus(tmp_path_factory.mktemp("prometheus"), ports) as server:
        outs: list[str] = []
        for first in range(0, len(RUNS), 2):  # two at a time, as there are cores
            pair = list(zip(ports[first : first + 2], RUNS[first : first + 2], strict=False))
            with contextlib.ExitStack() as stack:
                both = [stack.enter_context(started(port, *run)) for port, run in pair]
                outs += [finish(process) for process in both]
        yield Watched(server, outs, ports)


def filled_in(query: str) -> str:
    """``query`` as Grafana would send it for all runs."""
    for variable, value in (
        ("$instance", ".+"),
        ("$__rate_interval", "10s"),
        ("$__range", "5m"),
    ):
        query = query.replace(variable, value)
    assert "$" not in query
    return query


@needs_prometheus
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ray"])
def test_every_query_of_every_panel_returns_data(watched: Watched, name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            query = filled_in(target["expr"])
            found = watched.server.values(query, instant=bool(target.get("instant")))
            assert found, f"{panel['title']}: no data for {query}"


@needs_prometheus
def test_prometheus_holds_what_the_runs_printed(watched: Watched) -> None:
    def last(run: int, metric: str, labels: str = "") -> float:
        query = f"{metric}{{{watched.instance(run)}{labels}}}"
        (series,) = watched.server.values(query)
        return series[-1]

    result, draft, load = map(json.loads, watched.outs[:3])
    assert last(0, "lpu_tokens_total") == len(result["tokens"])
    assert last(0, "lpu_virtual_seconds_total") == pytest.approx(result["virtual_seconds"])
    accepted, rejected = (
        last(1, "lpu_draft_tokens_total", f',drafter="lpu",verdict="{verdict}"')
        for verdict in ("accepted", "rejected")
    )
    assert accepted / (accepted + rejected) == pytest.approx(draft["acceptance"])
    assert last(1, "lpu_recoveries_total", ',kind="gpu_node"') == draft["nodes_lost"] == 1
    for name, pool in load["pools"].items():
        of = f',platform="{name}"'
        assert last(2, "lpu_requests_total", of) == 300
        assert last(2, "lpu_tokens_total", of) == pool["output_tokens"]
        served = 300 - pool["refused"]
        assert last(2, "lpu_refused_requests_total", of) == pool["refused"]
        assert last(2, "lpu_time_to_first_token_seconds_count", of) == served
        seconds = last(2, "lpu_time_to_first_token_seconds_sum", of)
        assert seconds == pytest.approx(served * pool["ttft_s"]["mean"])
        for stage, told in pool["stages"].items():
            if told["servers"]:
                named = f'{of},pool="{stage}"'
                assert last(2, "lpu_pool_utilisation_ratio", named) == told["utilisation"]


@needs_prometheus
def test_the_virtual_clock_was_seen_moving(watched: Watched) -> None:
    query = f"lpu_virtual_cycles_total{{{watched.instance(0)}}}"
    (clock,) = watched.server.values(query)
    assert clock == sorted(clock) and len(set(clock)) >= 3


@needs_prometheus
def test_healthy_runs_fire_no_alert(watched: Watched) -> None:
    server = watched.server
    time.sleep(0.5)  # two evaluations
    assert server.firing() == []


def broken_artifact() -> Artifact:
    """Two chips that pass vectors, one of which sends a slot later than the other expects."""
    spec = ChipSpec()
    programs = []
    for late in (0, spec.send_spacing_cycles):
        blocks = new_blocks(4)
        blocks["queue"] = (43, C2C_QUEUE, C2C_QUEUE, 43)
        blocks["op"] = (Op.READ, Op.SEND, Op.RECEIVE, Op.WRITE)
        blocks["n1"] = 6
        blocks["dc1"] = spec.send_spacing_cycles
        blocks["da1"] = (1, 0, 0, 1)
        blocks["a"] = (0, 0, 0, 4096)
        send = spec.read_cycles + 10
        receive = send + spec.send_to_receive_cycles
        blocks["cycle"] = (late, late + send, receive, receive + spec.receive_cycles + 10)
        blocks["out"] = (32, -1, 0, -1)
        blocks["s0"] = (-1, 32, -1, 0)
        blocks["wo"] = (1, 0, 1, 0)
        blocks["w0"] = (0, 1, 0, 1)
        programs.append(Program(blocks, [], [], receive + 400))
    return Artifact(
        spec,
        "node-2",
        2,
        [(0, 0, 1, 0)],
        {"pass": programs},
        [0, 1],
        [[], []],
        {"outputs": {}},
        {},
        {"pass": programs[0].cycles},
    )


@needs_prometheus
def test_a_run_out_of_step_fires(watched: Watched, tmp_path: Path) -> None:
    server = watched.server
    save(broken_artifact(), tmp_path / "broken.lpu")
    port = watched.ports[-1]
    with started(port, "run", tmp_path / "broken.lpu") as process:
        server.wait(lambda: "LpuLockstepViolation" in [a["alertname"] for a in server.firing()])
        finish(process, code=1)
    assert server.firing() == [
        {
            "alertname": "LpuLockstepViolation",
            "instance": f"127.0.0.1:{port}",
            "kind": "arrival",
            "severity": "critical",
        }
    ]


@needs_prometheus
def test_an_overloaded_pool_fires(watched: Watched) -> None:
    server = watched.server
    port = watched.ports[-2]
    with started(
        port,
        "experiment",
        "load",
        "--requests",
        "300",
        "--rate",
        "2000",
        "--slo-ttft",
        "0.01",
        "--pool",
        "lpu",
    ) as process:
        server.wait(lambda: "LpuSloBurn" in [alert["alertname"] for alert in server.firing()])
        load = json.loads(finish(process))["pools"]["lpu"]
    burns = server.values('lpu:slo_burn:ratio{platform="lpu"} > 2')
    assert burns[-1][-1] == pytest.approx(100 * (1 - load["good_ratio"]))


@needs_prometheus
def test_recoveries_again_and_again_fire(watched: Watched) -> None:
    server = watched.server
    port = watched.ports[-3]

    def loops() -> bool:
        if board is not None:
            board.add("lpu_recoveries", 1, "gpu_node")
        return {
            "alertname": "LpuRecoveryLoop",
            "instance": f"127.0.0.1:{port}",
            "severity": "warning",
        } in server.firing()

    with exported(Exporter(port, "127.0.0.1", 0)) as board:
        server.wait(loops)


@needs_prometheus
@pytest.mark.long
def test_a_run_that_replays_fires(watched: Watched, tmp_path: Path) -> None:
    """A text on a machine with bad links: replayed again and again, and it says so."""
    server, port = watched.server, watched.ports[-4]
    here = f'instance="127.0.0.1:{port}"'
    plan = tmp_path / "faults.toml"
    plan.write_text("[links]\nbit_error_rate = 4e-6\n")
    with started(
        port,
        "generate",
        "--in-process",
        "--max-new-tokens",
        "192",
        "--ignore-eos",
        "--faults",
        plan,
    ) as process:
        wanted = {("LpuRecoveryLoop", f"127.0.0.1:{port}")}
        server.wait(
            lambda: wanted <= {(a["alertname"], a.get("instance", "")) for a in server.firing()}
        )
        faults = json.loads(finish(process))["faults"]
    for query, count in (
        (f"lpu_replays_total{{{here}}}", "replays"),
        (f"sum(lpu_fec_corrected_vectors_total{{{here}}})", "fec_corrected"),
        (f"sum(lpu_fec_uncorrectable_vectors_total{{{here}}})", "uncorrectable"),
        (f"lpu_fault_cost_cycles_total{{{here}}}", "cost_cycles"),
    ):
        (series,) = server.values(query)
        assert series[-1] == faults[count] > 3


def test_the_board_is_whole_before_any_run() -> None:
    """Alerts compare with what was there before: their series exist from the start."""
    families = {f.name for f in Board().registry.collect() if f.samples}
    assert {"lpu_lockstep_violations", "lpu_recoveries", "lpu_replays"} <= families
