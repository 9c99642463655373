"""Every metric that a dashboard draws, by value: runs counted by instruction, reports by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from chip.isa import C2C_QUEUE, Op
from chip.program import expand
from cluster.experiments.serving import (
    Latencies,
    publish_agents,
    publish_disaggregated,
    publish_load,
    publish_speedup,
)
from cluster.experiments.speculative import DraftWatch
from cluster.experiments.speculative.charges import Charge
from cluster.experiments.speculative.steps import DraftStep, RequestTrace
from cluster.listening import Listener
from cluster.metrics import Board, RunWatch
from cluster.metrics.table import METRICS, UNITS
from cluster.processes import Placement
from cluster.runs import publish_generation, run_generation
from programs.artifact import Artifact
from programs.running import Generation
from tests import ROOT
from tests.cluster.test_metrics import samples, total, unit_of

JSON = ROOT / "dashboards" / "grafana" / "dashboards"


def drawn() -> set[str]:
    """The metrics in the expressions of all panels, as they are exported."""
    known = {metric.exported for metric in METRICS}
    found: set[str] = set()
    for path in JSON.glob("*.json"):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", []):
                for word in re.findall(r"\blpu_\w+", target["expr"]):
                    whole = word in known
                    found.add(word if whole else re.sub(r"_(bucket|sum|count)$", "", word))
    return found


def test_every_metric_of_a_panel_is_read_by_a_test() -> None:
    """By ``total`` or ``valued``, which give numbers, in a test that is no dashboard's own."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests").rglob("test_metric*.py"))
    ]
    reading = r'(?:total|valued)\(board, "(lpu_\w+?)(?:_sum|_count)?"'
    read = {name for text in texts for name in re.findall(reading, text)}
    assert len(drawn()) > 30 and drawn() - read == set()


def valued(board: Board, name: str) -> dict[tuple[str, ...], float]:
    """A metric's samples by label values, in the order of the labels' names."""
    return {
        tuple(value for _, value in labels): number
        for (found, labels), number in samples(board).items()
        if found == name
    }


# --- chips and links, by instruction --------------------------------------------------------------

JOB = Generation((70, 221, 304), 4)


@pytest.fixture(scope="module")
def board(artifact: Artifact) -> Board:
    """After a run of two launches of prefill and four of decode on eight chips."""
    board = Board()
    watch = RunWatch(board, "generate", ("generate", "lpu"))
    run_generation(artifact, JOB, Placement(8, in_process=True), Listener(), 0.0, watch=watch)
    return board


@pytest.fixture(scope="module")
def counted(artifact: Artifact) -> list[Counter[tuple[str, object]]]:
    """Per chip what its programs did in the run: by unit, by link, and blocks by unit."""
    found = []
    for chip in range(8):
        sums: Counter[tuple[str, object]] = Counter()
        for entry, launches in (("prefill-64", 2), ("decode-64", 4)):
            program = artifact.program(entry, chip)
            for row in expand(program):
                queue, op = int(row["queue"]), int(row["op"])
                sums["instructions", unit_of(queue, op)] += launches
                if op == Op.SEND:
                    sums["vectors", str(queue - C2C_QUEUE)] += launches
            for block in program.blocks:
                gang = int(block["gang"])
                queue = int(block["queue"]) if gang < 0 else program.gangs[gang][0]
                sums["blocks", unit_of(queue, int(block["op"]))] += launches
        found.append(sums)
    return found


def test_retired_work_by_unit(board: Board, counted: list[Counter[tuple[str, object]]]) -> None:
    for chip, sums in enumerate(counted):
        for unit in UNITS:
            of = {"chip": str(chip), "unit": unit}
            assert (
                total(board, "lpu_retired_instructions_total", **of) == (sums["instructions", unit])
            )
            assert total(board, "lpu_retired_blocks_total", **of) == sums["blocks", unit]
    assert total(board, "lpu_retired_blocks_total") == sum(
        number for sums in counted for (what, _), number in sums.items() if what == "blocks"
    )


def test_links_are_busy_for_their_vectors(
    artifact: Artifact, board: Board, counted: list[Counter[tuple[str, object]]]
) -> None:
    """328 bytes at 12.5 GB/s and 900 MHz are 23.616 cycles a vector."""
    predicted = artifact.predicted_cycles
    cycles = 2 * predicted["prefill-64"] + 4 * predicted["decode-64"]
    assert (
        sum(number for sums in counted for (what, _), number in sums.items() if what == "vectors")
        == total(board, "lpu_link_vectors_total")
        > 0
    )
    for chip, sums in enumerate(counted):
        for link in (str(n) for n in range(16)):
            of = {"chip": str(chip), "link": link}
            sent = sums["vectors", link]
            assert total(board, "lpu_link_vectors_total", **of) == sent
            assert total(board, "lpu_link_bytes_total", **of) == 328 * sent
            busy = total(board, "lpu_link_busy_cycles_total", **of)
            assert busy == pytest.approx(23.616 * sent)
            ratio = total(board, "lpu_link_busy_ratio", **of)
            assert ratio == pytest.approx(23.616 * sent / cycles)


def test_the_machine_and_its_pace(artifact: Artifact, board: Board) -> None:
    assert total(board, "lpu_chips") == 8
    # 88 slices of 2 banks of 4,096 words of 320 bytes
    assert set(valued(board, "lpu_sram_capacity_bytes").values()) == {88 * 2 * 4096 * 320}
    assert len(valued(board, "lpu_sram_capacity_bytes")) == 8
    wall = total(board, "lpu_wall_seconds_total")
    virtual = total(board, "lpu_virtual_seconds_total")
    assert total(board, "lpu_wall_slowdown_ratio") == pytest.approx(wall / virtual)
    assert total(board, "lpu_wall_tokens_per_second") == pytest.approx(4 / wall)
    assert total(board, "lpu_replayed_positions_total") == 0


def test_a_generation_is_one_request() -> None:
    """Four tokens in 8 ms after the prompt's 5 ms: 2 ms each, the first after 7 ms."""
    board = Board()
    result = SimpleNamespace(
        tokens=[1, 2, 3, 4], decode_seconds=0.008, decode_tokens=4, virtual_seconds=0.013
    )
    publish_generation(board, result, 3)  # type: ignore[arg-type]
    assert total(board, "lpu_requests_total") == 1 and total(board, "lpu_prompt_tokens_total") == 3
    assert total(board, "lpu_time_to_first_token_seconds_sum") == pytest.approx(0.007)
    assert total(board, "lpu_time_per_output_token_seconds_sum") == pytest.approx(0.002)
    assert total(board, "lpu_time_to_first_token_seconds_bucket", le="0.005") == 0
    assert total(board, "lpu_time_to_first_token_seconds_bucket", le="0.01") == 1
    one = SimpleNamespace(tokens=[1], decode_seconds=0.002, decode_tokens=1, virtual_seconds=0.013)
    publish_generation(board, one, 3)  # type: ignore[arg-type]
    assert total(board, "lpu_time_to_first_token_seconds_count") == 2
    assert total(board, "lpu_time_per_output_token_seconds_count") == 1  # there is no further one


def test_a_first_token_that_is_the_prompts_has_no_share_in_decoding() -> None:
    """Three further tokens in 6 ms after a first one at 7 ms, which the prompt's launch gave."""
    board = Board()
    result = SimpleNamespace(
        tokens=[1, 2, 3, 4], decode_seconds=0.006, decode_tokens=3, virtual_seconds=0.013
    )
    publish_generation(board, result, 3)  # type: ignore[arg-type]
    assert total(board, "lpu_time_to_first_token_seconds_sum") == pytest.approx(0.007)
    assert total(board, "lpu_time_per_output_token_seconds_sum") == pytest.approx(0.002)


# --- experiments, from reports made by hand -------------------------------------------------------

#: First tokens after 1 and 3 seconds, and 0.25 s for each further one.
TOOK = Latencies(np.array([1, 3]) * 10**12, np.array([0.25, 0.25]) * 1e12)
SERVICE = {
    "requests": 8,
    "refused": 6,
    "good_ratio": 0.25,
    "output_tokens": 40,
    "prompt_tokens": 90,
    "tokens_per_s": 12.5,
}
STAGES = {
    "prefill": {"servers": 2, "utilisation": 0.5, "queue_mean": 1.5, "queue_peak": 4},
    "transfer": {"servers": 0, "utilisation": 9, "queue_mean": 9, "queue_peak": 9},
}


def check_service(board: Board, experiment: str, name: str) -> None:
    of = {"experiment": experiment, "platform": name}
    assert total(board, "lpu_requests_total", **of) == 8
    assert total(board, "lpu_refused_requests_total", **of) == 6
    assert total(board, "lpu_slo_kept_requests_total", **of) == 2
    assert total(board, "lpu_tokens_total", **of) == 40
    assert total(board, "lpu_prompt_tokens_total", **of) == 90
    assert total(board, "lpu_virtual_tokens_per_second", **of) == 12.5
    assert total(board, "lpu_time_to_first_token_seconds_sum", **of) == 4
    assert total(board, "lpu_time_to_first_token_seconds_count", **of) == 2
    assert total(board, "lpu_time_per_output_token_seconds_sum", **of) == 0.5
    # a stage without servers has no series
    assert total(board, "lpu_pool_utilisation_ratio", **of) == 0.5
    assert total(board, "lpu_pool_queue_mean_requests", **of, pool="prefill") == 1.5
    assert total(board, "lpu_pool_queue_peak_requests", **of, pool="prefill") == 4
    assert total(board, "lpu_pool_queue_peak_requests", **of) == 4


def test_a_load_on_the_board() -> None:
    board = Board()
    publish_load(board, {"pools": {"lpu": {**SERVICE, "stages": STAGES}}}, {"lpu": TOOK})
    check_service(board, "load", "lpu")


def test_disaggregated_platforms_on_the_board() -> None:
    """GPUs alone take 6 s for a request, the others 2: three times as fast."""
    board = Board()
    load = {**SERVICE, "stages": STAGES, "bytes": {"tokens": 7, "kv": 100}}
    platforms = {
        "gpu-only": {"alone": {"end_to_end_s": 6.0}, "load": {**load, "bytes": {}}},
        "both": {"alone": {"end_to_end_s": 2.0}, "load": load},
    }
    publish_disaggregated(board, {"platforms": platforms}, {"gpu-only": TOOK, "both": TOOK})
    for name in platforms:
        check_service(board, "disaggregated", name)
    assert total(board, "lpu_speedup_ratio", platform="both") == 3
    assert total(board, "lpu_speedup_ratio", platform="gpu-only") == 1
    assert total(board, "lpu_gpu_link_bytes_total", platform="both", kind="tokens") == 7
    assert total(board, "lpu_gpu_link_bytes_total", platform="both", kind="kv") == 100
    assert total(board, "lpu_gpu_link_bytes_total") == 107
    publish_speedup(board, "agentic", "routed", 1.5)
    publish_speedup(board, "agentic", "unknown", None)
    found = valued(board, "lpu_speedup_ratio")
    assert found["agentic", "routed"] == 1.5 and ("agentic", "unknown") not in found


def test_agents_on_the_board() -> None:
    board = Board()
    run = {
        "requests": 10,
        "failed": 1,
        "good_ratio": 0.7,
        "utilisation": {"lpu": 0.25, "gpu": 0.75},
        "steps": {"lpu": {"plan": 3, "answer": 4}, "tool": {"search": 5}},
        "messages": {"accepted": 30, "rejected": 2},
        "bytes": {"requests": 600, "answers": 66},
    }
    publish_agents(board, "routed", run, TOOK)
    assert valued(board, "lpu_router_decisions_total") == {
        ("plan", "routed", "lpu"): 3,
        ("answer", "routed", "lpu"): 4,
        ("search", "routed", "tool"): 5,
    }
    assert valued(board, "lpu_router_messages_total") == {
        ("routed", "accepted"): 30,
        ("routed", "rejected"): 2,
    }
    of = {"experiment": "agentic", "platform": "routed"}
    assert total(board, "lpu_gpu_link_bytes_total", **of, kind="json") == 666
    assert total(board, "lpu_requests_total", **of) == 10
    assert total(board, "lpu_refused_requests_total", **of) == 1
    assert total(board, "lpu_slo_kept_requests_total", **of) == 7
    assert total(board, "lpu_pool_utilisation_ratio", **of, pool="gpu") == 0.75
    assert total(board, "lpu_time_to_first_token_seconds_sum", **of) == 4


def test_drafting_on_the_board() -> None:
    """Of five drafts two are accepted and one is rejected, so two were never tested."""
    board = Board()
    watch = DraftWatch(board)
    work = SimpleNamespace()
    for accepted in (2, 5):
        watch.step("lpu", DraftStep(0, 5, accepted, 0, work))  # type: ignore[arg-type]
    assert total(board, "lpu_speculative_steps_total", drafter="lpu") == 2
    assert total(board, "lpu_speculative_steps_total") == 2
    assert {
        verdict: total(board, "lpu_draft_tokens_total", drafter="lpu", verdict=verdict)
        for verdict in ("accepted", "rejected", "discarded")
    } == {"accepted": 7, "rejected": 1, "discarded": 2}
    for lost, replayed in ((1, 40), (1, 40), (3, 90)):
        watch.pool(SimpleNamespace(lost=lost, replayed=replayed))  # type: ignore[arg-type]
    assert total(board, "lpu_recoveries_total", kind="gpu_node") == 3
    assert total(board, "lpu_replayed_positions_total") == 90


@pytest.mark.parametrize(("variant", "drafts"), [("lpu-draft", "lpu"), ("gpu-draft", "gpu")])
def test_a_variant_of_drafting_on_the_board(variant: str, drafts: str) -> None:
    """10 s of decoding, of which 4 draft, 5 verify and 1 is the link."""
    board = Board()
    row = {
        "variant": variant,
        "tokens": 6,
        "tokens_per_second": 0.6,
        "speedup": 2.5,
        "link_seconds": 1.0,
        "verify_seconds": 5.0,
        "draft_seconds": 4.0,
        "decode_seconds": 10.0,
        "bytes": {"tokens": 24, "logits": 70, "kv": 3, "kv_prompt": 4},
    }
    traces = [RequestTrace([1, 2], [3, 4, 5]), RequestTrace([1], [3, 4, 5])]
    DraftWatch(board).variant(row, traces, Charge(each=((1.0, 4.0), (2.0, 6.0))))
    assert total(board, "lpu_requests_total") == 2
    assert total(board, "lpu_tokens_total") == 6 and total(board, "lpu_prompt_tokens_total") == 3
    assert total(board, "lpu_time_to_first_token_seconds_sum") == 3
    # two tokens after the first: 2 s and 3 s each
    assert total(board, "lpu_time_per_output_token_seconds_sum") == 5
    assert total(board, "lpu_virtual_tokens_per_second") == 0.6
    assert total(board, "lpu_speedup_ratio") == 2.5
    shares = {"link": 0.1, "gpu": 0.5} | ({"lpu": 0.4} if drafts == "lpu" else {"gpu": 0.9})
    found = valued(board, "lpu_pool_utilisation_ratio")
    assert {pool: ratio for (_, _, pool), ratio in found.items()} == pytest.approx(shares)
    carried = valued(board, "lpu_gpu_link_bytes_total")
    kinds = {kind: nbytes for (_, kind, _), nbytes in carried.items()}
    assert kinds == {"tokens": 24, "logits": 70, "kv": 7, "json": 0, "activations": 0}


def test_a_variant_that_decoded_nothing_has_idle_pools() -> None:
    board = Board()
    row = {
        "variant": "lpu-draft",
        "tokens": 0,
        "tokens_per_second": 0.0,
        "speedup": None,
        "link_seconds": 1.0,
        "verify_seconds": 1.0,
        "draft_seconds": 1.0,
        "decode_seconds": 0.0,
        "bytes": {"kv": 0, "kv_prompt": 0},
    }
    DraftWatch(board).variant(row, [], Charge())
    assert set(valued(board, "lpu_pool_utilisation_ratio").values()) == {0.0}
    assert valued(board, "lpu_speedup_ratio") == {}
