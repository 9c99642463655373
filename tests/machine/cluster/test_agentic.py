"""Agents in virtual time: histories worked out by hand, real text, routers, damaged messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.agentic import (
    GPU,
    LPU,
    AgenticSettings,
    Always,
    Learned,
    Rule,
    build_site,
    draw_requests,
    make_router,
    run_agentic,
    run_agents,
)
from cluster.experiments.agentic.agents import (
    DRAFT,
    TARGET,
    AgentSite,
    GroupModel,
    LpuModel,
    _Run,
)
from cluster.experiments.agentic.graph import LIGHT, NEW_TOKENS, TOOL_MS, AgentRequest, AgentStep
from cluster.experiments.agentic.messages import KINDS, Inbox
from cluster.experiments.agentic.text import LpuWriter
from cluster.experiments.serving import PS
from cluster.experiments.serving.batching import I64
from cluster.experiments.serving.belt import given_belt
from cluster.experiments.serving.slots import BeltPlaces
from cluster.gpu import WorldLink


class Words:
    """A tokenizer of one token per word of a prompt, as far as the experiment asks."""

    class _Encoding:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    def encode(self, text: str) -> _Encoding:
        return self._Encoding([1, 2, 3])

    def decode(self, ids: Sequence[int]) -> str:
        return "word " * len(ids)


class Echo:
    def write(self, prompt: Sequence[int], new_tokens: int) -> tuple[int, ...]:
        return tuple(range(new_tokens))


class Seconds:
    """A GPU: a second per prefill, a tenth per step."""

    max_batch = 8
    kv_tokens = 10_000

    def prefill_ps(self, tokens: int) -> int:
        return PS

    def decode_ps(self, batch: int, context: int, steps: int) -> I64:
        return np.full(steps, PS // 10, np.int64)


LINK = WorldLink("test", 0.25, 1e12, 1.0)
SITE = AgentSite(
    {name: LpuModel(given_belt(10_000_000, 10**9, 1000), Echo()) for name in (DRAFT, TARGET)},
    {name: GroupModel(Seconds(), Echo()) for name in (DRAFT, TARGET)},
    Words(),
    LINK,  # type: ignore[arg-type]
)
CHAIN = AgentRequest(
    0,
    "a task",
    (
        AgentStep("plan", ()),
        AgentStep("choose_tool", (0,)),
        AgentStep("call_tool", (1,), "search"),
        AgentStep("reason", (0,)),
        AgentStep("summarise", (2, 3)),
    ),
)


def write_seconds(pool: str, kind: str) -> float:
    new = NEW_TOKENS[kind]
    return 0.01 * (3 + new - 1) if pool == LPU else 1 + 0.1 * (new - 1)


@pytest.mark.parametrize("pool", [LPU, GPU])
@pytest.mark.parametrize("light", [DRAFT, TARGET])
def test_a_request_takes_its_longest_path(pool: str, light: str) -> None:
    """Every step crosses the link twice; choosing and calling go on beside reasoning."""
    run = run_agents([CHAIN], SITE, Always(pool), 0, 100.0, light)
    steps = {kind: 0.5 + write_seconds(pool, kind) for kind in NEW_TOKENS}
    beside = max(steps["choose_tool"] + TOOL_MS["search"] / 1000, steps["reason"])
    expected = steps["plan"] + beside + steps["summarise"]
    if (pool, light) == (LPU, TARGET):  # reason waits for the one pipeline
        beside = max(beside, write_seconds(pool, "choose_tool") + steps["reason"])
        expected = steps["plan"] + beside + steps["summarise"]
    if (pool, light) == (GPU, TARGET):  # one batch: reason waits for choose_tool's prefill
        beside = max(steps["choose_tool"] + 2, steps["reason"] + 1)
        expected = steps["plan"] + beside + steps["summarise"]
    assert run["end_to_end_s"]["p50"] == pytest.approx(expected, abs=1e-6)
    assert run["steps"][pool] == {"choose_tool": 1, "plan": 1, "reason": 1, "summarise": 1}
    assert run["steps"]["tool"] == {"call_tool": 1}
    expected_models = (
        {f"{pool}-{TARGET}": 4}
        if light == TARGET
        else {
            f"{pool}-{DRAFT}": 3,
            f"{pool}-{TARGET}": 1,
        }
    )
    assert run["steps_of_models"] == expected_models
    assert run["messages"] == {"accepted": 9, "rejected": 0, "reasons": {}}
    other = GPU if pool == LPU else LPU
    assert run["bytes"][f"json to {other}"] == 0 < run["bytes"][f"json to {pool}"]


def test_a_run_in_which_nothing_ended_took_no_time() -> None:
    report = _Run([CHAIN], SITE, Always(LPU), 0, DRAFT).report(1.0)
    assert report["failed"] == 1
    assert (report["virtual_seconds"], report["goodput_per_s"]) == (0, 0)
    assert set(report["utilisation"].values()) == {0}


def test_graphs_are_graphs_and_come_from_the_seed() -> None:
    drawn = draw_requests(10.0, 200, 5)
    assert drawn == draw_requests(10.0, 200, 5) != draw_requests(10.0, 200, 6)
    assert {step.kind for request in drawn for step in request.steps} == set(KINDS)
    for request in drawn:
        assert request.steps[-1].kind == "summarise"
        for number, step in enumerate(request.steps):
            assert all(before < number for before in step.after)
            assert (step.kind == "call_tool") == (step.tool in TOOL_MS)
        needed = {before for step in request.steps for before in step.after}
        assert needed == set(range(len(request.steps) - 1))


def test_damaged_messages_are_counted_and_sent_again() -> None:
    requests = draw_requests(1.0, 30, 0)
    clean = run_agents(requests, SITE, Rule(), 0, 100.0)
    lossy = run_agents(requests, replace(SITE, corrupt=0.2), Rule(), 0, 100.0)
    assert clean["failed"] == 0 and lossy["messages"]["rejected"] > 20
    assert lossy["failed"] < 5
    hopeless = run_agents(requests, replace(SITE, corrupt=0.95), Rule(), 0, 100.0)
    assert hopeless["failed"] > 20
    if lossy["failed"] == 0:
        assert lossy["text_digest"] == clean["text_digest"]
        assert lossy["end_to_end_s"]["mean"] > clean["end_to_end_s"]["mean"]


def test_a_damaged_message_costs_its_way_and_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What first crosses the link comes as nothing: who sent it hears so, and sends it again."""
    calm = run_agents([CHAIN], SITE, Always(LPU), 0, 100.0, DRAFT)
    receive, came = Inbox.receive, []

    def received(inbox: Inbox, raw: bytes, **options: Any) -> Any:
        came.append(raw)
        return receive(inbox, raw[1:] if len(came) == 2 else raw, **options)

    monkeypatch.setattr(Inbox, "receive", received)
    run = run_agents([CHAIN], SITE, Always(LPU), 0, 100.0, DRAFT)
    assert run["messages"]["rejected"] == 1 and sum(run["messages"]["reasons"].values()) == 1
    assert run["failed"] == 0 and run["text_digest"] == calm["text_digest"]
    later = run["end_to_end_s"]["p50"] - calm["end_to_end_s"]["p50"]
    assert later == pytest.approx(2 * LINK.latency_s, abs=1e-6)


def test_the_rule_and_what_is_learned() -> None:
    for kind in NEW_TOKENS:
        assert Rule().choose({"kind": kind}) == (LPU if kind in LIGHT else GPU)
    learned, picks = Learned(0), []
    for _ in range(200):
        view = {"kind": "plan"}
        picks.append(learned.choose(view))
        learned.observe(view, picks[-1], 1.0 if picks[-1] == LPU else 0.5)
    assert set(picks[:4]) == {LPU, GPU}
    assert picks[4:].count(GPU) > 180 and LPU in picks[4:]
    again = Learned(0)
    for pick in picks:
        assert again.choose({"kind": "plan"}) == pick
        again.observe({"kind": "plan"}, pick, 1.0 if pick == LPU else 0.5)


def test_a_router_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_routers.py").write_text(
        "def long(view):\n"
        "    return 'gpu' if view['max_new_tokens'] > 16 else 'lpu'\n"
        "def wrong(view):\n    return 'tpu'\n"
        "def broken(view):\n    return view['colour']\n"
        "def leaving(view):\n    raise SystemExit(0)\n"
        "thing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    run = run_agents([CHAIN], SITE, make_router("my_routers:long", 0), 0, 100.0)
    assert run["steps"][GPU] == {"reason": 1}
    for name in ("wrong", "broken", "leaving"):
        with pytest.raises(InputError, match=name):
            run_agents([CHAIN], SITE, make_router(f"my_routers:{name}", 0), 0, 100.0)
    for name in ("my_routers:thing", "my_routers:absent", "absent:x", "clever", ":", "a:"):
        with pytest.raises(InputError) as caught:
            make_router(name, 0)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def site() -> AgentSite:
    """The shipped models on LPUs and GPUs."""
    return build_site(AgenticSettings())


@pytest.mark.long
def test_text_is_real_and_cycles_are_those_of_emulated_chips(site: AgentSite) -> None:
    requests = draw_requests(50.0, 4, 0)
    report = run_agentic(requests, site, "rule", 0, 0.1)
    runs = report["runs"]
    only = {"gpu-only", "lpu-only"}
    assert set(runs) == {"routed", *only, *(f"{name}-target" for name in only)}
    # The draft's light steps show; the target writes the same on LPUs and GPUs, or nearly.
    assert runs["routed"]["text_digest"] != runs["gpu-only-target"]["text_digest"]
    assert runs["lpu-only"]["text_digest"] != runs["lpu-only-target"]["text_digest"]
    assert all(run["failed"] == 0 and run["first_answer"].strip() for run in runs.values())
    model = site.lpu[DRAFT]
    assert isinstance(model.writer, LpuWriter) and model.writer.cycles
    before, after = model.belt.host_cycles
    for (prompt, new), cycles in model.writer.cycles.items():
        took = BeltPlaces(model.belt, 1).enter(0, len(prompt), new).done
        assert took == cycles + (len(prompt) - 1) * before + new * after
    assert run_agentic(requests, site, "rule", 0, 0.1) == report


def test_runs_that_are_compared_differ_in_what_they_name(site: AgentSite) -> None:
    """Machines alone: every kind of step is on the same model as in the routed run."""
    report = run_agentic(draw_requests(50.0, 4, 0), site, "rule", 0, 0.1)
    runs = report["runs"]

    def steps_of(run: dict[str, Any]) -> dict[str, int]:
        counts = dict.fromkeys((DRAFT, TARGET), 0)
        for name, count in run["steps_of_models"].items():
            counts[name.split("-")[1]] += count
        return counts

    assert steps_of(runs["routed"]) == steps_of(runs["gpu-only"]) == steps_of(runs["lpu-only"])
    assert set(runs["gpu-only"]["steps_of_models"]) == {"gpu-draft", "gpu-target"}
    assert set(runs["gpu-only-target"]["steps_of_models"]) == {"gpu-target"}
    assert runs["gpu-only"]["utilisation"]["gpu-draft"] > 0
    medians = {name: run["end_to_end_s"]["p50"] for name, run in runs.items()}
    for pair in report["speedups"]:
        assert pair["end_to_end"] == medians[pair["over"]] / medians[pair["of"]]
        mine, others = pair["compares"].split(" against ")
        for text, ran in ((mine, runs[pair["of"]]), (others, runs[pair["over"]])):
            for name, count in ran["steps_of_models"].items():
                pool, model = name.split("-")
                assert f"{model} on {site.machines[pool]} ({count} steps)" in text
    assert report["speedup"] == medians["gpu-only"] / medians["routed"]


@pytest.mark.long
def test_host_traffic_is_counted_by_kind(site: AgentSite) -> None:
    runs = run_agentic(draw_requests(50.0, 2, 0), site, "rule", 0, 0.1)["runs"]
    gpu, lpu = runs["gpu-only"]["host_bytes"], runs["lpu-only"]["host_bytes"]
    written = sum(
        NEW_TOKENS[kind] * count for kind, count in runs["gpu-only"]["steps"][GPU].items()
    )
    assert gpu["gpu_tokens_out"] == 4 * written < gpu["gpu_tokens_in"]
    assert gpu["lpu_inputs_in"] == 0 < lpu["lpu_inputs_in"]
    assert lpu["lpu_logits_out"] >= 4 * 1024 * written and lpu["gpu_tokens_out"] == 0


@pytest.mark.long
def test_same_seed_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    def report(seed: str) -> dict[str, Any]:
        arguments = ["--requests", "2", "--router", "learned", "--corrupt", "0.1"]
        assert run(["experiment", "agentic", "--json", "--seed", seed, *arguments]) == 0
        value: dict[str, Any] = json.loads(capsys.readouterr().out)
        return value

    one = report("3")
    assert one == report("3")
    assert one["runs"] != report("4")["runs"]
    assert {"end_to_end_s", "ttft_s", "tpot_s", "router", "runs"} <= set(one)


@pytest.mark.long
def test_the_table_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "agentic", "--requests", "1"]) == 0
    assert "lpu-only" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--requests", "0"),
        ("--requests", "100000"),
        ("--rate", "-1"),
        ("--seed", "-1"),
        ("--router", "learned", "--seed", "-1"),
        ("--slo", "0"),
        ("--slo", "nan"),
        ("--corrupt", "1"),
        ("--corrupt", "nan"),
        ("--router", "clever"),
        ("--router", "no_such_module:f"),
        ("--link", "string"),
        ("--gpu", "abacus"),
        ("--gpu-groups", "0"),
        ("--pipelines", "0"),
        ("--pipelines", "1000000"),
        ("--chips", "3"),
        ("--dtype", "int4"),
    ],
)
def test_bad_settings_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(["experiment", "agentic", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
