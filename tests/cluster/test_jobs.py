"""Every workload script as a job of a fresh ``ray start --head``, watched by a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.stands.prometheus_server import DASHBOARDS, free_ports, prometheus

ROOT = DASHBOARDS.parent
WORKLOADS = sorted(path.stem for path in (ROOT / "programs" / "workloads").glob("*.py"))
#: Head ports that Ray takes: below those of its workers.
HEAD_PORTS = range(6400, 10_000, 7)

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Head:
    """A running head: where jobs go, what Ray put its files in, the environment of its commands."""

    address: str
    directory: Path
    environment: dict[str, str]

    def submit(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` as README says, waiting for the job's end."""
        return subprocess.run(
            [
                "ray",
                "job",
                "submit",
                "--address",
                self.address,
                "--working-dir",
                str(ROOT),
                "--",
                "python",
                f"programs/workloads/{script}.py",
                *arguments,
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )


def head_port() -> int:
    for port in HEAD_PORTS:
        with contextlib.suppress(OSError):
            import socket

            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port for a head")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with its own files and ports; ended by ending the process that was started."""
    directory = Path(tempfile.mkdtemp(prefix="lpu-head-", dir="/tmp"))
    dashboard, metrics = free_ports(2)
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": paths,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HOME": str(directory / "home"),
    }
    (directory / "home").mkdir()
    environment.pop("PYTHONPATH", None)
    with (directory / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "ray",
                "start",
                "--head",
                "--block",
                "--port",
                str(head_port()),
                "--num-cpus",
                "4",
                "--temp-dir",
                str(directory / "ray"),
                "--dashboard-port",
                str(dashboard),
                # any free port: another Ray of this host may have taken the agents' usual one
                "--dashboard-agent-listen-port",
                "0",
                "--metrics-export-port",
                str(metrics),
                "--disable-usage-stats",
                "--object-store-memory",
                str(100 << 20),
            ],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=directory,
        )
    found = Head(f"http://127.0.0.1:{dashboard}", directory, environment)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, (directory / "head.log").read_text()
            with contextlib.suppress(OSError):
                ask = urllib.request.Request(
                    f"{found.address}/api/jobs/",
                    b'{"entrypoint": "true"}',
                    {"Content-Type": "application/json"},
                )
                urllib.request.urlopen(ask, timeout=60).close()  # an error while no agent is up
                break
            assert time.monotonic() < end, (directory / "head.log").read_text()
            time.sleep(0.5)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def check_generation(result: dict[str, Any]) -> None:
    assert len(result["tokens"]) == 192 and result["chips"] == result["actors"] == 8
    assert result["cycles_per_token"] == result["predicted_cycles_per_token"]


def check_speculative(result: dict[str, Any]) -> None:
    assert [run["lossless"] for run in result["gammas"].values()] == [True] * 8


def check_load(result: dict[str, Any]) -> None:
    assert {run["requests"] for run in result["rates"].values()} == {2000}


def check_disaggregated(result: dict[str, Any]) -> None:
    assert set(result["links"]) == {"100gbe", "pcie5-x16"}


def check_agentic(result: dict[str, Any]) -> None:
    assert {run["failed"] for run in result["runs"].values()} == {0}


@pytest.mark.parametrize("script", WORKLOADS)
def test_script_as_a_job(head: Head, script: str, tmp_path: Path) -> None:
    done = head.submit(script, "--json", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert f"result: {tmp_path / 'result.json'}" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["workload"] == script
    globals()[f"check_{script}"](result)


def test_a_job_says_where_its_result_stays(head: Head) -> None:
    """Without a file named: in the home directory, because Ray removes the job's own."""
    done = head.submit("disaggregated")
    assert done.returncode == 0, done.stdout + done.stderr
    path = head.directory / "home" / "lpu-results" / "disaggregated.json"
    assert f"result: {path}" in done.stdout
    check_disaggregated(json.loads(path.read_text()))


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_a_job_is_watched_beside_ray(head: Head, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    discovered = head.directory / "ray" / "prom_metrics_service_discovery.json"
    with prometheus(tmp_path, [port], str(discovered)) as server:
        done = head.submit(
            "generation",
            "--json",
            str(tmp_path / "r.json"),
            "--metrics-port",
            str(port),
            "--metrics-linger",
            "60",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (tokens,) = server.values('lpu_tokens_total{experiment="generate"}')
        assert tokens[-1] == 192 and server.values("lpu_processes")[0][-1] == 8
        (skew,) = server.values("lpu_lockstep_skew_cycles")
        assert max(skew) > 0
        board = json.loads((DASHBOARDS / "grafana/dashboards/ray.json").read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                assert server.values(target["expr"]), panel["title"]
