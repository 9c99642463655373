"""Speculative decoding in virtual time, one request at a time and several: who waits for whom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.experiments.speculative.charges import Machines
from cluster.experiments.speculative.serving import charge
from cluster.experiments.speculative.steps import DraftStep, RequestTrace, Work
from cluster.gpu import LINK_PRESETS, GpuGroup, WorldLink, load_gpu_spec
from programs.models import architecture
from tests import examples


def one_after_another(
    prompt: int, steps: list[DraftStep], machines: Machines, link: WorldLink, variant: str
) -> tuple[float, float]:
    """Seconds to the start and of decoding of one greedy request alone, by a plain loop."""
    gpu, kv = machines.gpu, machines.kv_bytes_per_token if variant == "lpu-kv" else 0

    def over(nbytes: int, more: int) -> float:
        return link.latency_s + (nbytes + more) / (link.bytes_per_s * link.achieved_ratio)

    def work(done: Work) -> float:
        draft = sum(gpu.prefill_seconds(machines.draft, n, before) for before, n in done.passes)
        return done.cycles / machines.clock_hz + done.io_seconds + draft

    read = gpu.host_seconds(prompt) + gpu.prefill_seconds(machines.target, prompt)
    reading = 3_000_000 / machines.clock_hz + 1e-5
    crosses = variant.startswith("lpu")
    start = (
        max(read + over(4, kv * prompt), reading)
        if crosses
        else read + gpu.host_seconds(1) + reading
    )
    decode = 0.0
    for step in steps:
        decode += work(step.work)
        decode += gpu.verify_seconds(machines.target, step.context, step.drafted + 1)
        if crosses:
            decode += over(4 * step.drafted, 0) + over(8, kv * step.emitted)
        else:
            looked_up = step.drafted if variant == "lookup" else 0
            decode += gpu.host_seconds(1 + looked_up) + gpu.host_seconds(step.emitted)
    return start, decode


MACHINES = Machines(
    9e8, GpuGroup(load_gpu_spec("h100")), architecture("llama-3-8b"), architecture("smollm2-135m")
)


def steps_of(request: int, works: Work) -> list[DraftStep]:
    accepted = [(request + n) % 4 for n in range(6)]
    starts = np.cumsum([40, *(a + 1 for a in accepted)])
    return [DraftStep(int(at), 3, a, 0, works) for at, a in zip(starts, accepted, strict=False)]


@pytest.mark.parametrize("variant", ["lpu-tokens", "lpu-kv", "gpu-draft", "lookup"])
def test_one_at_a_time_is_the_sum_of_its_parts(variant: str) -> None:
    passes = ((40, 1), (41, 1), (42, 1)) if variant == "gpu-draft" else ()
    cycles = 900_000 if variant.startswith("lpu") else 0
    work, link = Work(3, cycles, 2e-5 if cycles else 0.0, passes), LINK_PRESETS["100gbe"]
    start = Work(cycles=3_000_000, io_seconds=1e-5)
    traces = [RequestTrace([0] * 40, [0] * 9, start, steps_of(r, work)) for r in range(3)]
    total = charge(traces, MACHINES, link, variant, sampling=False)
    sums = [one_after_another(40, t.steps, MACHINES, link, variant) for t in traces]
    assert total.start == pytest.approx(sum(start for start, _ in sums))
    assert total.decode == pytest.approx(sum(decode for _, decode in sums))
    assert total.makespan == pytest.approx(total.start + total.decode) and total.wait == 0


def test_what_is_shared_is_waited_for() -> None:
    """Two requests alike whose drafts take far longer than all else, by hand."""
    second = Work(1, 900_000_000)
    traces = [RequestTrace([0] * 40, [0] * 9, second, steps_of(0, second)) for _ in range(2)]
    link = WorldLink("quick", 0.0, 1e15, 1.0)
    alone = charge(traces[:1], MACHINES, link, "lpu-tokens", sampling=False)
    both = charge(traces, MACHINES, link, "lpu-tokens", sampling=False, concurrent=2)
    # The drafter never rests: two prompts and twelve drafts of a second, then one verification.
    assert both.makespan == pytest.approx(14.0, abs=0.02)
    assert both.draft == pytest.approx(2 * alone.draft) and both.verify == 2 * alone.verify
    assert both.wait == pytest.approx(12.0, abs=0.1)
    assert both.decode == pytest.approx(
        both.draft + both.verify + both.link + both.host + both.wait
    )


def test_a_batch_is_verified_in_one_pass() -> None:
    """Without a drafter to wait for, requests of one length go through in step."""
    traces = [RequestTrace([0] * 40, [0] * 9, Work(), steps_of(0, Work())) for _ in range(4)]
    link = LINK_PRESETS["pcie5-x16"]
    both = charge(traces, MACHINES, link, "lookup", sampling=False, concurrent=4)
    gpu, target = MACHINES.gpu, MACHINES.target
    passes = sum(gpu.pass_time(target, [step.context] * 4, 4).seconds for step in traces[0].steps)
    # The first request waits for the other prompts; then all four are verified together.
    assert both.verify == pytest.approx(4 * passes)
    assert both.makespan < 0.5 * charge(traces, MACHINES, link, "lookup", False).makespan


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from(["lpu-tokens", "lpu-kv", "gpu-draft", "lookup"]),
    st.booleans(),
)
def test_sharing_loses_no_time_and_no_byte(
    kinds: list[int], concurrent: int, variant: str, sampling: bool
) -> None:
    passes = ((40, 1), (41, 1), (42, 1)) if variant == "gpu-draft" else ()
    lpu = variant.startswith("lpu")
    link = LINK_PRESETS["100gbe"]
    traces = []
    for kind in kinds:
        work = Work(3, 300_000 * (kind + 1) if lpu else 0, 0.0, passes)
        traces.append(RequestTrace([0] * (40 + kind), [0] * 9, work, steps_of(kind, work)))
    alone = charge(traces, MACHINES, link, variant, sampling)
    shared = charge(traces, MACHINES, link, variant, sampling, concurrent)
    parts = shared.draft + shared.verify + shared.link + shared.host + shared.wait
    assert shared.decode == pytest.approx(parts)
    assert shared == charge(traces, MACHINES, link, variant, sampling, concurrent)
    for name in ("tokens", "logits", "kv", "kv_prompt", "host"):
        assert getattr(shared, f"bytes_{name}") == getattr(alone, f"bytes_{name}")
    assert shared.wait >= 0 and (concurrent > 1 or shared.wait == 0)
    if lpu:
        drafting = sum(300_000 * (kind + 1) * 7 for kind in kinds) / 9e8
        assert shared.makespan > drafting  # there is one drafter
    down = shared.bytes_kv + shared.bytes_kv_prompt
    assert shared.makespan > down / (link.bytes_per_s * link.achieved_ratio)


def test_a_link_carries_one_cache_at_a_time() -> None:
    """Two prompts' caches of ten seconds each on a slow link, the rest in no time."""
    kv = MACHINES.kv_bytes_per_token * 40
    link = WorldLink("slow", 0.0, kv / 10, 1.0)
    quick = Work(1, 1)
    traces = [RequestTrace([0] * 40, [0], quick, []) for _ in range(2)]
    shared = charge(traces, MACHINES, link, "lpu-kv", sampling=False, concurrent=2)
    assert shared.makespan == pytest.approx(20.0, abs=0.05)
    assert shared.start == pytest.approx(30.0, abs=0.1)
