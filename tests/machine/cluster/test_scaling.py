"""A pool that grows and shrinks: against a slow oracle, and by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.serving import PS, Scaling, Slo, Trace
from cluster.experiments.serving.batching import I64, run_batched, serve_batched, served_by
from cluster.experiments.serving.figures import service_report
from cluster.experiments.serving.scaling import node_ps
from tests import examples
from tests.oracles.load_oracle import batched
from tests.unit.cluster.test_load import Tens, requests, times_of, trace_of

rules = st.builds(
    lambda least, more, queue, wait, idle, start: Scaling(
        least, least + more, queue, None if wait is None else wait / PS, idle / PS, start / PS
    ),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
    st.none() | st.integers(1, 90),
    st.integers(1, 120),
    st.integers(1, 90),
)


@settings(max_examples=examples(300), deadline=None)
@given(requests, rules)
def test_scaling_is_what_the_oracle_says(rows: list[tuple[int, int, int]], rule: Scaling) -> None:
    trace, cost = trace_of(rows), Tens()
    batching = run_batched(trace, cost, 1, rule)
    log: list[tuple[int, int]] = []
    expected = batched(
        trace.arrival_ps.tolist(),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        cost.prefill_ps,
        cost.step_ps,
        cost.max_batch,
        cost.kv_tokens,
        rule.most,
        (rule.least, rule.queue, rule.wait_ps, rule.idle_ps, rule.start_ps),
        log,
    )
    assert times_of(served_by(batching, trace)) == expected
    assert batching.nodes == [(0, rule.least), *log]
    assert all(rule.least <= count <= rule.most for _, count in batching.nodes)


@settings(max_examples=examples(50), deadline=None)
@given(requests, st.integers(1, 4))
def test_a_rule_without_room_changes_nothing(
    rows: list[tuple[int, int, int]], servers: int
) -> None:
    trace = trace_of(rows)
    fixed = serve_batched(trace, Tens(), servers)
    scaled = serve_batched(trace, Tens(), 1, Scaling(servers, servers))
    assert times_of(fixed) == times_of(scaled) and fixed.nodes == scaled.nodes == [(0, servers)]


class Second:
    """A second for a prompt; one request at a time."""

    max_batch = 1
    kv_tokens = 100

    def prefill_ps(self, tokens: int) -> int:
        return PS

    def decode_ps(self, batch: int, context: int, steps: int) -> I64:
        return np.full(steps, PS, np.int64)


def test_a_burst_by_hand() -> None:
    """Four requests at once, one group of at most two, one waiting request allowed per group."""
    at = np.array([0, 0, 0, 0, 20], np.int64) * PS
    ones = np.ones(5, np.int64)
    trace = Trace(at, ones, ones, "by hand")
    rule = Scaling(1, 2, queue=1, idle_s=3.0, start_s=1.5)
    served = serve_batched(trace, Second(), 1, rule)
    # Three wait: a second group starts, and takes the third request half a second into the second.
    assert (served.done_ps / PS).tolist() == [1, 2, 2.5, 3, 21]
    # It is done at 2.5, idle for 3 s, and stops.
    assert served.nodes == [(0, 1), (0, 2), (5.5 * PS, 1)]
    report = service_report(trace, served, Slo())
    assert report["node_seconds"] == 2 * 5.5 + 15.5
    assert report["utilisation"] == pytest.approx(5 / (2 * 5.5 + 15.5))
    assert report["nodes"] == [[0, 1], [0, 2], [5.5, 1]] and report["nodes_peak"] == 2


def test_a_long_wait_starts_one_group_too() -> None:
    trace = Trace(*(np.array(v, np.int64) for v in ([0, 0, 0], [1] * 3, [3, 3, 3])), "by hand")
    rule = Scaling(1, 3, queue=100, wait_s=0.5, idle_s=100.0, start_s=0.25)
    served = serve_batched(trace, Second(), 1, rule)
    assert served.nodes == [(0, 1), (PS // 2, 2), (PS * 3 // 4, 3)]
    assert (served.start_ps / PS).tolist() == [0, 0.75, 1.0]


def test_node_seconds_are_an_integral() -> None:
    assert node_ps([(0, 2)], 7) == 14
    assert node_ps([(0, 2), (3, 4), (3, 5), (6, 1)], 8) == 6 + 15 + 2


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    command = ["experiment", "load", "--json", "--pool", "gpu", "--arrivals", "bursts"]
    assert run([*command, "--burst", "300", *arguments]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)["pools"]["gpu"]
    return value


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = report(capsys)
    assert fixed["scaling"] is None and fixed["nodes"] == [[0.0, 1]]
    assert fixed["node_seconds"] == fixed["virtual_seconds"]
    options = ("--gpu-groups-max", "4", "--scale-start", "0.05", "--scale-idle", "0.2")
    scaled = report(capsys, *options)
    assert scaled == report(capsys, *options)
    assert scaled["nodes_peak"] == 4
    counts = [count for _, count in scaled["nodes"]]
    assert any(after < before for before, after in pairwise(counts))
    assert scaled["scaling"]["most"] == 4 and 0 < scaled["utilisation"] <= 1
    assert scaled["node_seconds"] < 4 * scaled["virtual_seconds"]
    assert scaled["ttft_s"]["p90"] < fixed["ttft_s"]["p90"]
    assert run(["experiment", "load", "--pool", "gpu", *options]) == 0
    assert "group-seconds" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gpu-groups-max", "0"),
        ("--gpu-groups", "3", "--gpu-groups-max", "2"),
        ("--gpu-groups-max", "5000"),
        ("--scale-idle", "3"),
        ("--gpu-groups-max", "2", "--scale-idle", "nan"),
        ("--gpu-groups-max", "2", "--scale-start", "-1"),
        ("--gpu-groups-max", "2", "--scale-wait", "0"),
        ("--gpu-groups-max", "2", "--scale-queue", "0"),
        ("--gpu-groups-max", "2", "--pool", "lpu"),
    ],
)
def test_bad_settings_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(["experiment", "load", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


def test_senseless_rules_are_refused() -> None:
    for wrong in ({"queue": 0}, {"wait_s": -1.0}, {"idle_s": float("inf")}, {"least": 0}):
        with pytest.raises(InputError):
            Scaling(**{"least": 1, "most": 2, **wrong})  # type: ignore[arg-type]
