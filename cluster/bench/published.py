"""The rows of ``lpu bench`` about a published model, where its file is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from time import perf_counter

from chip.spec import ChipSpec
from cluster.bench.numpy_prefill import prompt_of
from cluster.bench.row import Row
from cluster.errors import RunError
from cluster.listening import Listener
from cluster.processes import Placement
from cluster.runs import kept_chips, run_generation
from programs.decoder import compile_decoder, join_images, partition_model
from programs.models import CheckpointError, open_model, packaged_model
from programs.running import Generation

MODEL, CHIPS, CONTEXT = "smollm2", 8, 128
#: Where both sides decode, tokens; ours decodes as many again as llama.cpp's side does.
POSITION = 24
TOKENS = 16
#: What the two cores of the machine that the aims are for give to both sides.
THREADS = 2
AIM_TOKENS_PER_SECOND = 8.0
#: Of ``prefill_vs_numpy``: the prompt, and how many of its tokens share each install.
PROMPT, CHUNK = 512, 8


def missing(name: str) -> str | None:
    """What would have to be installed before row ``name`` can be measured; None: nothing."""
    own = name.startswith("smollm2_") and name != "smollm2_token_seconds"
    if not own and name != "prefill_vs_numpy":
        return None
    try:
        packaged_model(MODEL)
    except CheckpointError as error:
        return str(error)
    if name == "smollm2_vs_llamacpp" and find_spec("llama_cpp") is None:
        return "llama.cpp is not installed; run: pip install llama-cpp-python"
    return None


def _decode_seconds() -> float:
    """Wall seconds per token of eight chips in eight actors after the first launches."""
    checkpoint = open_model(MODEL)
    model = partition_model(checkpoint, CHIPS, "int8")
    artifact = compile_decoder(model, ChipSpec(), CONTEXT)
    job = Generation(tuple(range(1, POSITION + 1)), TOKENS)
    result = run_generation(artifact, job, Placement(1), Listener(), perf_counter(), model)
    return result.steady_token_seconds


def smollm2_tokens_per_wall_second() -> list[Row]:
    """SmolLM2-135M-Instruct, int8, eight chips in eight actors."""
    return [
        Row(
            "smollm2_tokens_per_wall_second",
            1 / _decode_seconds(),
            "tokens/s",
            AIM_TOKENS_PER_SECOND,
            "the aim for eight actors on two cores",
        )
    ]


def smollm2_vs_llamacpp() -> list[Row]:
    """The same model and position, emulated by eight actors and run by llama.cpp as Q8_0."""
    value = _decode_seconds()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cluster.bench.llamacpp_baseline",
            str(packaged_model(MODEL)),
            str(POSITION),
            str(THREADS),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"llama.cpp failed: {done.stderr.strip()[-200:]}")
    return [
        Row(
            "smollm2_vs_llamacpp",
            value,
            "s per token",
            float(done.stdout.split()[-1]),
            f"llama.cpp, Q8_0, {THREADS} threads, from position {POSITION} on",
        )
    ]


def _numpy_prompt_seconds() -> float:
    """A prompt through the plain float32 forward on one thread, in a process of its own."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.bench.numpy_prefill", MODEL, str(PROMPT)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"the NumPy baseline of prompts failed: {done.stderr.strip()[-200:]}")
    return float(done.stdout)


def _prompt_seconds() -> float:
    """A prompt by eight chips in this process, after another one that linked the programs."""
    model = partition_model(open_model(MODEL), CHIPS, "int8")
    artifact = compile_decoder(model, ChipSpec(), PROMPT, chunk=CHUNK)
    join_images(artifact)
    read = prompt_of(PROMPT)
    with kept_chips(artifact, Placement(CHIPS, in_process=True), lambda _: None) as work:
        work(Generation((1, *read[1:]), 1), Listener())
        return work(Generation(tuple(read), 1), Listener()).first_token_seconds


def prefill_vs_numpy() -> list[Row]:
    """An emulated prompt between two runs of a plain float32 forward, one thread each."""
    before = _numpy_prompt_seconds()
    value = _prompt_seconds()
    baseline = (before + _numpy_prompt_seconds()) / 2
    return [
        Row(
            "prefill_vs_numpy",
            value,
            f"s for {PROMPT} tokens",
            baseline,
            f"plain NumPy float32 forward of SmolLM2-135M, one thread, before and after, with "
            f"every token's logits; ours in int8 in chunks of {CHUNK}, with the last one's",
        )
    ]
