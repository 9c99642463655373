"""What the experiments say for a report: belts of requests, latencies, speeds, rooflines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from chip.spec import ChipSpec, load_chip_spec
from cluster.experiments.serving import (
    PS,
    Belt,
    DisaggregatedResult,
    DisaggregatedSettings,
    Latencies,
    LoadResult,
    LoadSettings,
    Served,
    Trace,
)
from cluster.gpu import GpuGroup
from cluster.report.from_models import latency_section, lpu_roof, roofline_section
from cluster.report.run_file import Run, new_run
from interconnect.wiring import node_cables
from programs.models import Architecture

if TYPE_CHECKING:
    from cluster.experiments.speculative import SpeculativeResult

Section = dict[str, Any]

#: Requests shown on a belt: the first that were served.
RIDERS = 60
NO_PROGRAM = "the experiment charges compiled cycles; lpu generate --save shows the program itself"


def requests_belt(name: str, trace: Trace, served: Served) -> Section | None:
    """The first requests of a platform from arrival to the last token; None if none was served."""
    fine = np.flatnonzero(served.done_ps >= 0)[:RIDERS]
    if not len(fine):
        return None
    columns = (trace.arrival_ps, served.start_ps, served.first_ps, served.done_ps)
    rows = np.maximum.accumulate(np.stack([column[fine] for column in columns], axis=1), axis=1)
    return {
        "name": name,
        "unit": "ps",
        "per_second": float(PS),
        "stages": ["waiting", "to the first token", "further tokens"],
        "items": [
            {"label": f"request {number}", "times": times}
            for number, times in zip(fine.tolist(), rows.tolist(), strict=True)
        ],
        "note": f"The first {len(fine):,} requests that were served, in virtual time.",
    }


def _latencies(took: Mapping[str, Latencies], sources: Mapping[str, str]) -> list[Section] | str:
    note = "Virtual time of every request that was served; p50 and p99 by nearest rank."
    pictures = [
        latency_section(
            "time to the first token",
            {name: (one.ttft_ps / PS, sources[name]) for name, one in took.items()},
            note,
        ),
        latency_section(
            "time per further token",
            {name: (one.tpot_ps / PS, sources[name]) for name, one in took.items()},
            note,
        ),
    ]
    return [picture for picture in pictures if picture] or "no request was served"


def _machine(spec: ChipSpec, chips: int | None, others: list[Section], note: str) -> Section:
    number = chips or 1
    return {
        "chip": spec.name,
        "chips": number,
        "chips_per_node": number,
        "clock_hz": spec.clock_hz,
        "topology": f"node-{number}",
        "cables": [list(cable) for cable in node_cables(number)],
        "others": others,
        "note": note,
    }


def _beside(group: GpuGroup, groups: int, link: str) -> Section:
    gpus = group.tensor_parallel
    name = group.spec.name if gpus == 1 else f"{gpus} x {group.spec.name}"
    return {"name": name, "count": groups, "link": link}


def _pipelines(pipelines: int, chips: int | None) -> str:
    size = f"with {chips} of these chips" if chips else "of a given speed, drawn as one chip"
    return f"LPU pipelines: {pipelines}, each {size}."


def _known_chips(settings: LoadSettings | DisaggregatedSettings) -> int | None:
    """Chips of a pipeline; None where its cycles were given, whatever it is made of."""
    return None if settings.lpu_cycles_per_token else settings.chips


def _lpu_source(belt: Belt) -> str:
    return "exact" if belt.exact else "given"


def _roofline(
    arch: Architecture,
    context: int,
    group: GpuGroup,
    belt: Belt | None,
    spec: ChipSpec,
    chips: int | None,
    dtype: str,
) -> Section:
    """LPUs have a point where a belt is there, and are known by number only if compiled."""
    roof = None if belt is None or chips is None else lpu_roof(spec, chips, dtype)
    seconds = nbytes = 0.0
    if belt is not None:
        bucket = int(np.searchsorted(belt.buckets, context, "right"))
        cycles = belt.decode_cycles[min(bucket, len(belt.buckets) - 1)]
        seconds = cycles / belt.clock_hz
        weight = 2.0 if dtype == "fp16" else 1.0
        nbytes = arch.parameters_read(1) * weight + (context + 1) * arch.kv_bytes_per_token(4)
    return roofline_section(
        arch,
        context,
        [group],
        roof,
        seconds,
        nbytes,
        "weights and fp32 KV cache once",
        "given" if belt is None else _lpu_source(belt),
    )


def load_run(facts: list[tuple[str, str]], result: LoadResult) -> Run:
    """The run of ``lpu experiment load``."""
    s, belt, trace, served = result.settings, result.belt, result.trace, result.served
    spec, chips = load_chip_spec(s.chip), _known_chips(s)
    sources = {"gpu": "estimated", "lpu": "estimated" if belt is None else _lpu_source(belt)}
    others = [] if "gpu" not in served else [_beside(result.group, s.gpu_groups, "")]
    belts = [requests_belt(f"{name} pool", trace, times) for name, times in served.items()]
    context = int(np.median(trace.prompt_tokens + trace.output_tokens // 2)) if len(trace) else 0
    machine: Section | str = "no LPU took part"
    if belt is not None:
        machine = _machine(spec, chips, others, _pipelines(s.pipelines, chips))
    return new_run(
        "load",
        f"{len(trace):,} requests, {trace.source}",
        facts,
        {
            "machine": machine,
            "belts": [one for one in belts if one] or "no request was served",
            "latencies": _latencies(result.latencies, sources),
            "roofline": _roofline(result.arch, context, result.group, belt, spec, chips, s.dtype),
            **dict.fromkeys(("sram", "utilisation", "links"), NO_PROGRAM),
        },
    )


def disaggregated_run(facts: list[tuple[str, str]], result: DisaggregatedResult) -> Run:
    """The run of ``lpu experiment disaggregated``."""
    s, site, report, served = result.settings, result.site, result.report, result.served
    spec, chips = load_chip_spec(s.chip), _known_chips(s)
    arch, group, belt = site.arch, site.gpu, site.belt
    sources = dict.fromkeys(served, "estimated")
    if "lpu-only" in sources:
        sources["lpu-only"] = _lpu_source(belt)
    belts = [requests_belt(name, result.trace, times) for name, times in served.items()]
    others = [_beside(group, site.groups, site.link.name)]
    return new_run(
        "disaggregated",
        f"{arch.name}: prefill and decode apart",
        facts,
        {
            "machine": _machine(spec, chips, others, _pipelines(site.pipelines, chips)),
            "belts": [one for one in belts if one] or "no request was served",
            "latencies": _latencies(result.latencies, sources),
            "roofline": _roofline(
                arch, int(report["prompt_tokens"]), group, belt, spec, chips, s.dtype
            ),
            "bars": [
                {
                    "title": f"one request alone: {title}",
                    "unit": "s",
                    "note": f"{report['prompt_tokens']:,} + {report['output_tokens']:,} tokens, no "
                    "other request.",
                    "values": [
                        {"name": name, "value": value, "source": sources[name]}
                        for name, value in report[key].items()
                    ],
                }
                for key, title in (("ttft_s", "first token"), ("tpot_s", "per further token"))
            ],
            **dict.fromkeys(("sram", "utilisation", "links"), NO_PROGRAM),
        },
    )


#: A step of each variant: what it does first, and whether a link is crossed twice.
_STEP = ("draft", "to the verifier", "verify", "back")


def _step_belt(row: Section) -> Section | None:
    """Mean steps of one variant one after another; None where it has none."""
    steps = row.get("steps") or 0
    if not steps or not (row["draft_seconds"] or row["verify_seconds"]):
        return None
    spans = [
        row["draft_seconds"],
        row["link_seconds"] / 2,
        row["verify_seconds"],
        row["link_seconds"] / 2,
    ]
    ends = np.cumsum([round(span / steps * PS) for span in spans])
    shown = min(int(steps), 20)
    return {
        "name": row["variant"],
        "unit": "ps",
        "per_second": float(PS),
        "stages": list(_STEP),
        "items": [
            {"label": f"step {n}", "times": [int(n * ends[-1] + at) for at in (0, *ends)]}
            for n in range(shown)
        ],
        "note": f"{shown} steps of mean length, of {steps:,}; a step yields "
        f"{row['tokens_per_step']:.2f} tokens.",
    }


def speculative_run(facts: list[tuple[str, str]], experiment: SpeculativeResult) -> Run:
    """The run of ``lpu experiment speculative``; of a sweep, the settings of its headline."""
    result, s = experiment.report, experiment.settings
    asked = [
        row
        for row in result["rows"]
        if row["temperature"] in (None, result["temperature"])
        and row["gamma"] in (None, 0, result["gamma"])
        and row["link"] in (None, result["link"])
    ]
    gpus, link = result["gpu_tp"], str(result["link"])
    gpu = result["gpu"] if gpus == 1 else f"{gpus} x {result['gpu']}"
    belts = [_step_belt(row) for row in asked]
    source = "estimated"

    def bars(title: str, unit: str, key: str, note: str) -> Section:
        return {
            "title": title,
            "unit": unit,
            "note": note,
            "values": [
                {"name": row["variant"], "value": row.get(key), "source": source} for row in asked
            ][:64],
        }

    measured = (
        "measured with the shipped models"
        if result["alpha"] is None
        else (f"drawn with an acceptance rate of {result['alpha']:g}")
    )
    return new_run(
        "speculative",
        f"{result['draft_model']} drafts for {result['gpu_model']}",
        facts,
        {
            "machine": _machine(
                load_chip_spec(s.chip),
                s.chips or 1,
                [{"name": gpu, "count": result["gpu_nodes"], "link": link}],
                "draft on the LPUs",
            ),
            "belts": [one for one in belts if one] or "no variant took steps",
            "bars": [
                bars(
                    "decoding speed over GPU-only",
                    "x",
                    "speedup",
                    f"gamma {result['gamma']}; acceptance {measured}.",
                ),
                bars(
                    "seconds per token after the first",
                    "s",
                    "tpot_s",
                    "Virtual time: LPU cycles of compiled programs, GPU passes by the roofline.",
                ),
            ],
            "latencies": "times are means of steps, not of requests: see the bars",
            "roofline": "drafting and verifying are different work: see the bars",
            **dict.fromkeys(("sram", "utilisation", "links"), NO_PROGRAM),
        },
    )
