"""A real Prometheus for tests: the shipped configuration, other ports, a faster pace."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

DASHBOARDS = ROOT / "dashboards"
SHIPPED = DASHBOARDS / "prometheus" / "prometheus.yml"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Prometheus:
    """A running server; ``began`` is when it started, seconds since the epoch."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.time()

    def ask(self, path: str, **parameters: object) -> Any:
        """The data of an API call."""
        text = urllib.parse.urlencode({k: str(v) for k, v in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{text}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def values(self, query: str, *, instant: bool = False) -> list[list[float]]:
        """Finite values of each series of ``query``, over the time since the start or now."""
        now = time.time()
        if instant:
            found = self.ask("query", query=query, time=now)["result"]
            rows = [[row["value"]] for row in found]
        else:
            found = self.ask("query_range", query=query, start=self.began, end=now, step=0.2)
            rows = [row["values"] for row in found["result"]]
        numbers = [[float(value) for _, value in row] for row in rows]
        return [finite for row in numbers if (finite := [v for v in row if math.isfinite(v)])]

    def firing(self) -> list[dict[str, str]]:
        """The labels of alerts that fire now."""
        alerts = self.ask("alerts")["alerts"]
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

    def wait(self, ready: Callable[[], object], seconds: float = 20.0) -> None:
        """Until ``ready`` is true."""
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "Prometheus did not get there"
            time.sleep(0.1)


@contextlib.contextmanager
def prometheus(
    directory: Path, targets: Sequence[int], ray: str = "/no/such/file.json"
) -> Iterator[Prometheus]:
    """A server that scrapes ``targets`` twice a second, and Ray's nodes of file ``ray``."""
    config = yaml.safe_load(SHIPPED.read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(SHIPPED.parent / name) for name in config["rule_files"]]
    ours, rays = config["scrape_configs"]
    ours["static_configs"][0]["targets"] = [f"127.0.0.1:{port}" for port in targets]
    rays["file_sd_configs"][0] = {"files": [ray], "refresh_interval": "1s"}
    rays["scrape_interval"] = "1s"
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    port = free_ports(1)[0]
    binary = shutil.which("prometheus")
    assert binary is not None
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    server = Prometheus(port)

    def is_up() -> bool:
        assert process.poll() is None, (directory / "prometheus.log").read_text()
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"{server.url}/-/ready", timeout=5))
        return False

    try:
        server.wait(is_up)
        # Targets come to the scrapers some seconds after the start.
        server.wait(lambda: len(server.values('up{job="lpu"}')) == len(targets))
        yield server
    finally:
        process.terminate()
        process.wait(20)
