"""The rows of ``lpu bench`` about whole models."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from time import perf_counter

from chip.engine import warm_up
from chip.spec import ChipSpec
from cluster.bench.row import Row
from cluster.errors import RunError
from programs.decoder import (
    GoldenDecoder,
    Host,
    Layout,
    PartitionedModel,
    compile_decoder,
    join_images,
    random_chip_weights,
)
from programs.models import ModelConfig, config_of, random_checkpoint
from programs.plans import compile_plan, run_timing, timing_programs
from programs.running import Generation, Runner

MODEL, CHIPS, CONTEXT = "llama-2-70b", 576, 4096
SMOLLM2 = ModelConfig(
    hidden_size=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    tied=True,
    max_position=8192,
)
SMOLLM2_CONTEXT = 128
AIM_PLAN_SECONDS = 60.0
AIM_PLAN_GIB = 8.0
AIM_CHIP_CYCLES_PER_S = 1e9
AIM_SMOLLM2_SECONDS = 1.0
RUNS = 5


def plan_70b() -> list[Row]:
    """A 70B model on 576 chips: planned, checked and run without data, by a new process."""
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "plan",
        "--model",
        MODEL,
        "--chips",
        str(CHIPS),
        "--context",
        str(CONTEXT),
        "--json",
    ]
    began = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = perf_counter() - began
    if done.returncode:
        raise RunError(f"lpu plan failed: {done.stderr.strip()[-200:]}")
    plan = json.loads(done.stdout)
    if not plan["checked"] or plan["run_cycles"] != plan["cycles_per_token"]:
        raise RunError("the plan was not checked, or its run took other cycles")
    gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    text = f"the aim; {MODEL} on {CHIPS} chips, context {CONTEXT}, start to exit"
    return [
        Row("plan_70b", seconds, "s", AIM_PLAN_SECONDS, text),
        Row("plan_70b_memory", gib, "GiB", AIM_PLAN_GIB, "the aim; the largest child process"),
    ]


def timing_chip_cycles() -> list[Row]:
    """Chip-cycles per second of the plan's launch on chips without data, one thread."""
    name, config = config_of(MODEL)
    plan = compile_plan(name, config, ChipSpec(), context=CONTEXT, chips=CHIPS)
    programs = timing_programs(plan)
    warm_up()
    best = float("inf")
    for _ in range(RUNS):
        began = perf_counter()
        run_timing(plan, programs)
        best = min(best, perf_counter() - began)
    text = f"the aim; one token of {MODEL} through {len(plan.starts)} stages, fastest of {RUNS}"
    return [
        Row(
            "timing_chip_cycles",
            plan.chips * plan.cycles / best,
            "chip-cycles/s",
            AIM_CHIP_CYCLES_PER_S,
            text,
        )
    ]


def smollm2_token_seconds() -> list[Row]:
    """One decoded token of SmolLM2-135M's shape on one chip, functional, after the first.

    Raises RunError unless the first token's logits are the golden model's to the bit.
    """
    layout = Layout.of(SMOLLM2, 1)
    weights = {0: random_chip_weights(layout, "int8", 0, 0)}
    model = PartitionedModel(random_checkpoint(SMOLLM2, 0), layout, "int8", _built=weights)
    artifact = compile_decoder(model, ChipSpec(), SMOLLM2_CONTEXT)
    join_images(artifact)
    exact = GoldenDecoder(model).step(1, 0, SMOLLM2_CONTEXT)
    host = Host(artifact, replace(model, _built={}))
    runner = Runner.alone(artifact, host)
    runner.generate(Generation((1,), 1))  # links the program and touches the memory
    if host.read_logits(runner.chips[0]).tobytes() != exact.tobytes():
        raise RunError("the logits are not those of the golden model")
    began = perf_counter()
    result = runner.generate(Generation((1,), RUNS))
    seconds = (perf_counter() - began) / RUNS
    cycles = result.retired[0][0]
    text = f"the aim; {cycles:,} cycles a token, {cycles / seconds:,.0f} chip-cycles/s with data"
    return [Row("smollm2_token_seconds", seconds, "s", AIM_SMOLLM2_SECONDS, text)]
