"""The runs of commands that launch programs: ``generate``, ``run`` and ``fabric collective``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.gpu import collective_samples, load_gpu_spec
from cluster.report.from_models import (
    default_groups,
    gpu_token_seconds,
    latency_section,
    lpu_roof,
    roofline_section,
)
from cluster.report.from_programs import (
    belt_section,
    bytes_read,
    machine_section,
    sram_section,
    utilisation_sections,
)
from cluster.report.run_file import Run, new_run
from cluster.runs import CollectiveRun
from cluster.tracing import Launched
from programs.artifact import Artifact
from programs.decoder import ends_prompt
from programs.models import Architecture

Section = dict[str, Any]
Facts = list[tuple[str, str]]


def _program_sections(artifact: Artifact, launches: Sequence[Launched]) -> Section:
    """The sections that the programs alone give; utilisation is that of the last launch."""
    utilisation, links = utilisation_sections(artifact, launches[-1])
    return {
        "machine": machine_section(artifact),
        "belts": belt_section(artifact, launches),
        "sram": sram_section(artifact, sorted({launch.entry for launch in launches})),
        "utilisation": utilisation,
        "links": links,
    }


def launch_run(facts: Facts, artifact: Artifact, launched: Launched) -> Run:
    """The run of ``lpu run``."""
    return new_run(
        "run",
        f"entry point {launched.entry}",
        facts,
        {
            **_program_sections(artifact, [launched]),
            "roofline": "one launch of an artifact: the model's shape is not known here",
            "latencies": "one launch: every further one takes exactly as many cycles",
        },
    )


def generation_run(
    facts: Facts,
    title: str,
    artifact: Artifact,
    launches: Sequence[Launched],
    arch: Architecture,
    dtype: str,
    seed: int,
    prompt_tokens: int,
) -> Run:
    """The run of ``lpu generate``; GPUs beside it are estimates for the same tokens."""
    spec = artifact.spec
    gave = [launch for launch in launches if launch.token is not None]
    # A first token that came from a prompt's last beat or chunk took no launch of its own.
    own = [launch for launch in gave if not ends_prompt(launch.entry)] or gave
    seconds = np.array([launch.cycles / spec.clock_hz for launch in own])
    middle = own[len(own) // 2]
    context = prompt_tokens - 1 + next(n for n, launch in enumerate(gave) if launch is middle)
    groups = default_groups()
    lpu = f"{artifact.chips} x {spec.name}"
    times: dict[str, Any] = {lpu: (seconds, "exact")}
    for group in groups:
        samples = gpu_token_seconds(group, arch, context, seed)
        times[f"1 x {group.spec.name}"] = (samples, "estimated")
    note = (
        f"Cycles of the {len(own)} tokens that were generated, host transfers left out; each "
        "GPU: the roofline of one token, batch 1, with seeded slowness of passes."
    )
    return new_run(
        "generate",
        title,
        facts,
        {
            **_program_sections(artifact, launches),
            "roofline": roofline_section(
                arch,
                context,
                groups,
                lpu_roof(spec, artifact.chips, dtype),
                middle.cycles / spec.clock_hz,
                float(bytes_read(artifact, middle.entry)),
                "what Reads and Gathers of the program take out of SRAM",
            ),
            "latencies": [latency_section("time of one token", times, note)],
        },
    )


def collective_run(done: CollectiveRun, gpu: str, seed: int) -> Run:
    """The run of ``lpu fabric collective --run``; as many GPUs beside it are an estimate."""
    if done.artifact is None or done.launched is None:
        raise ValueError("a collective that was planned only has no run to report")
    artifact, launched = done.artifact, done.launched
    operation, nbytes = done.settings.operation, done.settings.nbytes
    spec, chips = artifact.spec, artifact.chips
    other = load_gpu_spec(gpu)
    _, samples = collective_samples(other, operation, chips, nbytes, seed=seed)
    exact = np.array([launched.cycles / spec.clock_hz])
    times = {
        f"{chips} x {spec.name}": (exact, "exact"),
        f"{chips} x {other.name}": (samples, "estimated"),
    }
    note = "Chips: the cycles of the launch.  GPUs: ring or tree, with seeded lateness of kernels."
    return new_run(
        "collective",
        f"{operation} of {nbytes:,} bytes on {chips} chips",
        done.rows,
        {
            **_program_sections(artifact, [launched]),
            "roofline": "a collective moves data: its bound is the links",
            "latencies": [latency_section(f"time of one {operation}", times, note)],
        },
    )
