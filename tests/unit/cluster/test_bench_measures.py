"""What rows of the performance table measure: sizes, clocks and the baselines' own sums."""

from __future__ import annotations

import json
import math
import resource
import subprocess
from collections.abc import Iterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.spec import ChipSpec
from cluster.bench import experiments, fabric, faults, first_token, metrics, numpy_baseline, plan
from cluster.bench import rows as bench
from cluster.errors import RunError
from cluster.experiments.serving import LoadSettings
from cluster.runs import compile_functional, random_words
from interconnect.wiring import hop_distances, topology_of

F64 = NDArray[np.float64]


def test_what_is_measured() -> None:
    """Two tables of different sizes would not compare."""
    tables: dict[Any, dict[str, Any]] = {
        bench: {
            "CHIPS": 8,
            "CONTEXT": 256,
            "PROMPT": (1, 2),
            "POSITION": 120,
            "TRACED_TOKENS": 32,
            "TRACES": 9,
            "AIM_TOKENS_PER_SECOND": 5.0,
        },
        fabric: {
            "MIB": 1024 * 1024,
            "AIM_ALLREDUCE_SECONDS": 60.0,
            "BOOKSIM_FLIT_HOPS_PER_S": 84e3,
            "MESSAGES": 200_000,
            "MESSAGE_VECTORS": 16,
        },
        plan: {
            "MODEL": "llama-2-70b",
            "CHIPS": 576,
            "CONTEXT": 4096,
            "SMOLLM2_CONTEXT": 128,
            "AIM_PLAN_SECONDS": 60.0,
            "AIM_PLAN_GIB": 8.0,
            "AIM_CHIP_CYCLES_PER_S": 1e9,
            "AIM_SMOLLM2_SECONDS": 1.0,
            "RUNS": 5,
        },
        experiments: {
            "AIM_SPECULATIVE_TOKENS_PER_SECOND": 10.0,
            "AIM_LOAD_SECONDS": 10.0,
            "GAMMA": 4,
            "NEW_TOKENS": 128,
        },
        first_token: {"AIM_SECONDS": 30.0, "AIM_SMOLLM2_SECONDS": 12.0},
        faults: {"CHIPS": 8, "ROUNDS": 5},
        metrics: {"CHIPS": 8, "CONTEXT": 128, "PROMPT": (1, 2), "PAIRS": 24, "SCRAPE_SECONDS": 1.0},
    }
    for module, names in tables.items():
        assert {name: getattr(module, name) for name in names} == names
    shapes = {
        (2048, 22, 32, 4, 64, 5632, 32000): bench.TINYLLAMA,
        (64, 1, 2, 1, 32, 96, 64): bench.TINY,
        (576, 30, 9, 3, 64, 1536, 49152): plan.SMOLLM2,
    }
    for sizes, c in shapes.items():
        assert sizes == (
            *(c.hidden_size, c.layers, c.heads, c.kv_heads),
            *(c.head_dim, c.ffn, c.vocab),
        )
    assert plan.SMOLLM2.tied and not (bench.TINYLLAMA.tied or bench.TINY.tied)
    assert (faults.JOB.prompt, faults.JOB.max_new_tokens) == ((1, 2), 192)


# --- the forward in NumPy -------------------------------------------------------------------------

SIZES = {
    "hidden": 12,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 6,
    "ffn": 10,
    "vocab": 7,
    "position": 5,
}


def drawn_logits(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    position: int,
) -> F64:
    """The same draws in their order, and one token of Llama in float64, head by head."""
    random = np.random.Generator(np.random.PCG64(0))

    def matrix(rows: int, columns: int) -> F64:
        drawn = random.random((rows, columns), np.float32).astype(float)
        return np.asarray((drawn - 0.5) * 2 / columns**0.5)

    def norm(x: F64) -> F64:
        return np.asarray(x / math.sqrt(sum(x * x) / len(x) + 1e-5))

    wide, narrow = heads * head_dim, kv_heads * head_dim
    shapes = [(wide, hidden), (narrow, hidden), (narrow, hidden), (hidden, wide)]
    shapes += [(ffn, hidden), (ffn, hidden), (hidden, ffn)]
    sets = [[matrix(*shape) for shape in shapes] for _ in range(2)]
    head = matrix(vocab, hidden)
    cache = [
        random.random((layers, kv_heads, position + 1, head_dim), np.float32).astype(float)
        for _ in range(2)
    ]
    turn = np.exp(1j * random.random(head_dim // 2, np.float32).astype(float))
    x = random.random(hidden, np.float32).astype(float)

    def rotate(v: F64) -> F64:
        half = head_dim // 2
        turned = (v[:half] + 1j * v[half:]) * turn
        return np.concatenate([turned.real, turned.imag])

    for layer in range(layers):
        q, k, v, o, gate, up, down = sets[layer % 2]
        n = norm(x)
        for g in range(kv_heads):
            own = slice(g * head_dim, (g + 1) * head_dim)
            cache[0][layer, g, position] = rotate((k @ n)[own])
            cache[1][layer, g, position] = (v @ n)[own]
        mixed = []
        for h in range(heads):
            query = rotate((q @ n)[h * head_dim : (h + 1) * head_dim])
            g = h // (heads // kv_heads)
            shares = np.exp(cache[0][layer, g] @ query / math.sqrt(head_dim))
            mixed.append(shares / shares.sum() @ cache[1][layer, g])
        x = x + o @ np.concatenate(mixed)
        n = norm(x)
        x = x + down @ ((gate @ n) / (1 + np.exp(-(gate @ n))) * (up @ n))
    return head @ norm(x)


def test_the_numpy_baseline_computes_a_token_of_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    logits: list[Any] = []
    ticks = iter([0.0, 5.0, 10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(numpy_baseline, "perf_counter", lambda: next(ticks))

    def chosen(row: Any) -> int:
        logits.append(row)
        return 0

    monkeypatch.setattr(np, "argmax", chosen)
    assert numpy_baseline.token_seconds(**SIZES, tokens=3) == 3.0  # the fastest of the three
    assert len(logits) == 3
    expected = drawn_logits(**SIZES)
    for row in logits:
        np.testing.assert_allclose(row, expected, rtol=2e-5, atol=1e-6)
    assert np.abs(expected).max() > 0.1


# --- the fabric -----------------------------------------------------------------------------------


def clock() -> Iterator[float]:
    """A second later whenever somebody looks."""
    return map(float, count())


@pytest.mark.long
@pytest.mark.parametrize("chips", [4, 16])
def test_numpy_adds_up_what_the_collective_does(
    chips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses sums that are not those of the data, so what it copies and adds is right."""
    compiled = compile_functional(
        topology_of(chips), "all-reduce", 320 * 4 * 9, ChipSpec(), "int32"
    )
    data = random_words(chips, compiled.source_words, "int32", 0)
    ticks = clock()
    monkeypatch.setattr(fabric, "perf_counter", lambda: next(ticks))
    assert fabric._numpy_seconds(compiled, data) == 1.0
    monkeypatch.setattr(np, "copyto", lambda *_: None)
    with pytest.raises(RunError, match="the NumPy baseline of the all-reduce did not add up"):
        fabric._numpy_seconds(compiled, data)


@pytest.mark.long
def test_flits_are_counted_hop_by_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = clock()
    monkeypatch.setattr(fabric, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(fabric, "MESSAGES", 500)
    (row,) = fabric.fabric_flit_hops()
    random = np.random.Generator(np.random.PCG64(0))
    random.integers(0, 264, (2, 1000))
    here, there = random.integers(0, 264, (2, 500))
    distances = hop_distances(topology_of(264), np.arange(264))
    assert row.value == 16 * int(distances[there, here].sum())
    assert (row.unit, row.baseline) == ("vector-hops/s", 84_000.0)


# --- whole commands -------------------------------------------------------------------------------


class Commands:
    """Commands that are not run: what they were, and what they answer, three seconds later."""

    def __init__(self, answer: str = "", code: int = 0) -> None:
        self.now = 0.0
        self.asked: list[list[str]] = []
        self.answer, self.code = answer, code

    def run(self, command: Sequence[str], **options: Any) -> Any:
        assert options["capture_output"] and options["text"]
        self.now += 3.0
        self.asked.append(list(command)[1:])
        return SimpleNamespace(returncode=self.code, stdout=self.answer, stderr="no\nroom")

    def put(self, monkeypatch: pytest.MonkeyPatch) -> Commands:
        monkeypatch.setattr(subprocess, "run", self.run)
        for module in (first_token, plan, experiments):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)
        return self


GENERATE = ["-m", "cluster.cli", "generate", "--max-new-tokens", "1", "--json"]


def test_first_tokens_are_whole_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands().put(monkeypatch)
    (row,) = first_token.first_token_seconds()
    assert (row.value, row.baseline, commands.asked) == (3.0, 30.0, [GENERATE])
    (row,) = first_token.smollm2_first_token_seconds()
    assert (row.value, row.baseline) == (3.0, 12.0)
    assert commands.asked[1:] == [[*GENERATE, "--model", "smollm2", "--chips-per-actor", "1"]] * 2
    Commands(code=1).put(monkeypatch)
    with pytest.raises(RunError, match="lpu generate failed: no"):
        first_token.first_token_seconds()


def test_a_plan_counts_when_it_was_checked_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"checked": True, "run_cycles": 9, "cycles_per_token": 9}
    commands = Commands(json.dumps(whole)).put(monkeypatch)
    usage = SimpleNamespace(ru_maxrss=3 * 2**20)  # KiB
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    seconds, memory = plan.plan_70b()
    assert (seconds.value, seconds.baseline, memory.value, memory.baseline) == (3.0, 60.0, 3.0, 8.0)
    asked = "-m cluster.cli plan --model llama-2-70b --chips 576 --context 4096 --json"
    assert commands.asked == [asked.split()]
    for wrong in ({"checked": False}, {"run_cycles": 8}):
        Commands(json.dumps(whole | wrong)).put(monkeypatch)
        with pytest.raises(RunError, match="the plan was not checked, or its run took other"):
            plan.plan_70b()
    Commands(code=2).put(monkeypatch)
    with pytest.raises(RunError, match="lpu plan failed: no"):
        plan.plan_70b()


def test_the_load_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[LoadSettings] = []
    ticks = clock()
    monkeypatch.setattr(experiments, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(experiments, "load", loaded.append)
    (row,) = experiments.load_10000_requests()
    assert (row.value, row.unit, row.baseline) == (1.0, "s", 10.0)
    assert loaded == [
        LoadSettings(
            model="llama-2-70b",
            rate=16.0,
            requests=10_000,
            prompt_tokens=1020,
            output_tokens=129,
            spread=0.8,
            gpu_tp=4,
            gpu_groups=4,
            pipelines=40,
            lpu_cycles_per_token=2_500_000,
            lpu_interval_cycles=150_000,
        )
    ]


def test_actors_are_compared_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a token by subject, tokens and placement; both rows, the larger model first."""
    asked: list[tuple[str, int, int, bool]] = []

    def seconds(subject: str, tokens: int, placement: Any, prompt: Any = bench.PROMPT) -> float:
        asked.append((subject, tokens, placement.chips_per_actor, placement.in_process))
        return float(len(asked))

    monkeypatch.setattr(bench, "tinyllama", lambda: "large")
    monkeypatch.setattr(bench, "shipped", lambda: "small")
    monkeypatch.setattr(bench, "_token_seconds", seconds)
    large, small = bench.actors_vs_one_process()
    assert [(row.value, row.baseline) for row in (large, small)] == [(2.0, 1.0), (4.0, 3.0)]
    assert asked == [
        ("large", 8, 8, True),
        ("large", 8, 1, False),
        ("small", 64, 8, True),
        ("small", 64, 1, False),
    ]
    assert large.name == "actors_vs_one_process" and small.name == f"{large.name}_small"
    asked.clear()
    baselines = iter([10.0, 30.0])
    monkeypatch.setattr(bench, "_numpy_token_seconds", lambda: next(baselines))
    (row,) = bench.decode_vs_numpy()
    assert (row.value, row.baseline) == (1.0, 20.0)
    assert asked == [("large", 6, 8, True)]


@pytest.mark.long
def test_the_shape_that_decodes_beside_numpy_fits_its_chips() -> None:
    assert bench.tinyllama().artifact.chips == bench.CHIPS
