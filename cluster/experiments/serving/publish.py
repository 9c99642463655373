"""Experiments on the board: what their reports say, in the words of the table.

They run in virtual time, faster or slower than a wall clock, so their counts come when a platform
has served its load.  Only speculative decoding, whose models really run, is told step by step
(``cluster.experiments.speculative.publish``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.experiments.serving.arrivals import PS
from cluster.experiments.serving.figures import Latencies
from cluster.gpu import KINDS

if TYPE_CHECKING:
    from cluster.metrics import Board


def publish_load(board: Board, report: dict[str, Any], took: dict[str, Latencies]) -> None:
    """A report of ``run_load``; took: the latencies of each pool's requests."""
    for name, pool in report["pools"].items():
        served = "load", name
        publish_service(board, served, pool, took[name])
        publish_stages(board, served, pool["stages"])


def publish_service(
    board: Board, served: tuple[str, str], report: dict[str, Any], took: Latencies
) -> None:
    """Counts, rates and latencies of a ``service_report``."""
    board.add("lpu_requests", report["requests"], *served)
    board.add("lpu_refused_requests", report["refused"], *served)
    board.add("lpu_slo_kept_requests", round(report["good_ratio"] * report["requests"]), *served)
    board.add("lpu_tokens", report["output_tokens"], *served)
    board.add("lpu_prompt_tokens", report["prompt_tokens"], *served)
    board.set("lpu_virtual_tokens_per_second", report["tokens_per_s"], *served)
    _observe(board, served, took)


def publish_stages(
    board: Board, served: tuple[str, str], stages: dict[str, dict[str, Any]]
) -> None:
    """Utilisation and queue of the stages that a platform has."""
    for name, stage in stages.items():
        if stage["servers"]:
            board.set("lpu_pool_utilisation_ratio", stage["utilisation"], *served, name)
            board.set("lpu_pool_queue_mean_requests", stage["queue_mean"], *served, name)
            board.set("lpu_pool_queue_peak_requests", stage["queue_peak"], *served, name)


def _observe(board: Board, served: tuple[str, str], took: Latencies) -> None:
    for name, picoseconds in (
        ("lpu_time_to_first_token_seconds", took.ttft_ps),
        ("lpu_time_per_output_token_seconds", took.tpot_ps),
    ):
        board.observe(name, (picoseconds / PS).tolist(), *served)


def publish_disaggregated(board: Board, report: dict[str, Any], took: dict[str, Latencies]) -> None:
    """A report of ``run_disaggregated``, its load; took: the latencies on each platform."""
    alone = {name: both["alone"]["end_to_end_s"] for name, both in report["platforms"].items()}
    for name, both in report["platforms"].items():
        served, load = ("disaggregated", name), both["load"]
        publish_service(board, served, load, took[name])
        publish_stages(board, served, load["stages"])
        for kind in KINDS:
            board.add("lpu_gpu_link_bytes", load["bytes"].get(kind, 0), *served, kind)
        if alone.get("gpu-only") and alone[name]:
            board.set("lpu_speedup_ratio", alone["gpu-only"] / alone[name], *served)


def publish_agents(board: Board, run_name: str, run: dict[str, Any], took: Latencies) -> None:
    """One run of ``run_agentic``; took: the latencies of its answers."""
    served = "agentic", run_name
    board.add("lpu_requests", run["requests"], *served)
    board.add("lpu_refused_requests", run["failed"], *served)
    board.add("lpu_slo_kept_requests", round(run["good_ratio"] * run["requests"]), *served)
    _observe(board, served, took)
    for pool, ratio in run["utilisation"].items():
        board.set("lpu_pool_utilisation_ratio", ratio, *served, pool)
    for pool, kinds in run["steps"].items():
        for kind, count in kinds.items():
            board.add("lpu_router_decisions", count, run_name, pool, kind)
    for verdict in ("accepted", "rejected"):
        board.add("lpu_router_messages", run["messages"][verdict], run_name, verdict)
    board.add("lpu_gpu_link_bytes", sum(run["bytes"].values()), *served, "json")


def publish_speedup(board: Board, experiment: str, platform: str, ratio: float | None) -> None:
    """How many times faster than GPUs alone, where that is known."""
    if ratio is not None:
        board.set("lpu_speedup_ratio", ratio, experiment, platform)
