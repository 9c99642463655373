"""The agentic experiment: its machines, built from the shipped models, and its runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.experiments.agentic.agents import (
    DRAFT,
    PROMPT_MOST,
    TARGET,
    AgentSite,
    GroupModel,
    LpuModel,
    run_agents,
)
from cluster.experiments.agentic.graph import NEW_TOKENS, AgentRequest, draw_requests
from cluster.experiments.agentic.router_actor import actor_desk, split_name
from cluster.experiments.agentic.routing import GPU, LPU, Always, Desk, Router, make_router
from cluster.experiments.agentic.settings import AgenticSettings
from cluster.experiments.agentic.text import GpuWriter, LpuWriter
from cluster.experiments.serving import RooflineCost, belt_of, publish_agents, publish_speedup
from cluster.gpu import GpuGroup, load_gpu_spec, load_link
from programs.models import architecture, open_model

COMPARED = (
    ("routed", "gpu-only"),
    ("routed", "lpu-only"),
    ("lpu-only", "gpu-only"),
    ("routed", "gpu-only-target"),
    ("gpu-only", "gpu-only-target"),
    ("lpu-only", "lpu-only-target"),
)
"""Pairs of runs whose times are divided: three on the same models, then others."""

if TYPE_CHECKING:
    from cluster.metrics import Board


@dataclass(frozen=True)
class AgenticResult:
    """What ``agentic`` found.

    report: plain data, times in seconds: what ``lpu experiment agentic --json`` prints.
    requests: what the agents asked for.
    """

    settings: AgenticSettings
    report: dict[str, Any]
    requests: list[AgentRequest]


def build_site(settings: AgenticSettings) -> AgentSite:
    """Compile the shipped models for LPUs, and load them for GPUs."""
    from programs.decoder import compile_model

    s = settings
    group = GpuGroup(load_gpu_spec(s.gpu), s.gpu_tp)
    link = load_link(s.link)
    lpu, gpu, checkpoints = {}, {}, {}
    for name in (DRAFT, TARGET):
        checkpoint = checkpoints[name] = open_model(name)
        cost = RooflineCost(group, architecture(name), s.max_batch)
        gpu[name] = GroupModel(cost, GpuWriter(checkpoint), s.gpu_groups)
        artifact = compile_model(
            checkpoint,
            tp=s.chips,
            dtype=s.dtype,
            context=PROMPT_MOST + max(NEW_TOKENS.values()),
            chip=s.chip,
        )
        lpu[name] = LpuModel(belt_of(artifact), LpuWriter(artifact), s.pipelines)
    machines = {
        LPU: f"{s.pipelines} x {s.chips} {s.chip} {s.dtype}",
        GPU: f"{s.gpu_groups} x {s.gpu_tp} {group.spec.name} {group.dtype}",
    }
    tokenizer = checkpoints[TARGET].tokenizer
    return AgentSite(lpu, gpu, tokenizer, link, s.corrupt, machines)


def agentic(
    settings: AgenticSettings,
    tell: Callable[[str], None] = lambda _: None,
    open_board: Callable[[], Board | None] = lambda: None,
) -> AgenticResult:
    """Agents' requests routed step by step, against GPU-only and LPU-only; the text is real.

    tell: what goes on, in words.  open_board: called when the settings are known to make sense;
    on the board that it gives, if any, the figures are published when each run has ended.
    Raises InputError for settings, files and routers that cannot be.
    """
    s = settings
    policy, in_actor = split_name(s.router)
    drawn = draw_requests(s.rate, s.requests, s.seed)
    make_router(policy, s.seed)
    board = open_board()
    site = build_site(s)
    with actor_desk(policy, s.seed) if in_actor else nullcontext() as desk:
        report = run_agentic(drawn, site, policy, s.seed, s.slo, tell, desk, board)
    return AgenticResult(s, report, drawn)


def run_agentic(
    requests: list[AgentRequest],
    site: AgentSite,
    router: str,
    seed: int,
    slo_s: float,
    tell: Callable[[str], None] = lambda _: None,
    desk: Desk | None = None,
    board: Board | None = None,
) -> dict[str, Any]:
    """``requests`` with the named router, then with everything on one pool; plain data.

    ``gpu-only`` and ``lpu-only`` run every step on the model that ``routed`` runs it on, so only
    machines differ; ``gpu-only-target`` and ``lpu-only-target`` run all steps on the target.
    desk: where that router works already, if not in this process.  board: published on when each
    run has ended.

    ``end_to_end_s``, ``ttft_s`` and ``tpot_s`` at the top are the medians of each run, in seconds;
    ``speedup`` is that of ``routed`` over ``gpu-only``, end to end, and ``speedups`` has them all,
    each with the models and machines that it compares.
    """
    routers: dict[str, tuple[Router | Desk, str]] = {
        "routed": (desk or make_router(router, seed), DRAFT),
        "gpu-only": (Always(GPU), DRAFT),
        "lpu-only": (Always(LPU), DRAFT),
        "gpu-only-target": (Always(GPU), TARGET),
        "lpu-only-target": (Always(LPU), TARGET),
    }
    runs = {}
    for name, (chosen, light) in routers.items():
        tell(f"{name} ...")
        done = partial(publish_agents, board, name) if board is not None else lambda *_: None
        runs[name] = run_agents(requests, site, chosen, seed, slo_s, light, done)
    ratio = _ratio(runs["gpu-only"], runs["routed"])
    if board is not None:
        publish_speedup(board, "agentic", "routed", ratio)
    return {
        "experiment": "agentic",
        "router": router,
        "seed": seed,
        "requests": len(requests),
        "slo_s": slo_s,
        "link": site.link.name,
        "machines_per_model": site.machines,
        "lpu_costs": {name: model.belt.source for name, model in site.lpu.items()},
        "lpu_decode_cycles": {
            name: list(model.belt.decode_cycles) for name, model in site.lpu.items()
        },
        "gpu_costs": "estimated: roofline",
        **{
            key: {name: run[key]["p50"] for name, run in runs.items()}
            for key in ("end_to_end_s", "ttft_s", "tpot_s")
        },
        "speedup": ratio,
        "speedups": [
            {
                "of": fast,
                "over": slow,
                "end_to_end": _ratio(runs[slow], runs[fast]),
                "compares": f"{_setting(runs[fast], site)} against {_setting(runs[slow], site)}",
            }
            for fast, slow in COMPARED
        ],
        "runs": runs,
    }


def _setting(run: dict[str, Any], site: AgentSite) -> str:
    """Which model ran how many steps on which machines."""
    parts = []
    for name, steps in run["steps_of_models"].items():
        pool, model = name.split("-", 1)
        parts.append(f"{model} on {site.machines[pool]} ({steps} steps)")
    return ", ".join(parts)


def _ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float | None:
    before, after = slow["end_to_end_s"]["p50"], fast["end_to_end_s"]["p50"]
    return before / after if before and after else None
