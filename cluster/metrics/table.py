"""Every metric there is, in one table: name, type, unit, labels, meaning and where it comes from.

The collectors (``board``), ``docs/reference/metrics.md`` (``reference``) and the tests are made
from this table and nothing else.  Names follow Prometheus: base units, the unit at the end of the
name, ``_total`` behind counters.  Every label has a bounded set of values: chips and links are
labelled one by one only in small machines (``places``), names that a user chooses become
``custom``.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
#: How a value comes about: cycles of programs; a model of GPU, link or host transfers; this
#: machine's clock; or a plain count.
EXACT, ESTIMATED, WALL, FACT = "exact", "estimated", "wall clock", "fact of the run"

PLACE = ("rack", "node", "chip")
LINK = (*PLACE, "link")
SERVED = ("experiment", "platform")

#: 1-2-5 steps from a microsecond (an LPU's token) to 100 s (a queue that never ends).
SECONDS_BUCKETS = (
    *(float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 2, 5)),
    100.0,
)


@dataclass(frozen=True)
class Metric:
    """One metric.

    name: as exported, without ``_total`` of counters.  unit: the name's last words.  labels: in
    order.  values: of labels whose values are known beforehand; their series exist from the start.
    """

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    help: str
    basis: str
    derived: str
    values: tuple[tuple[str, ...], ...] = ()

    @property
    def exported(self) -> str:
        """The name that a query uses."""
        return f"{self.name}_total" if self.kind == COUNTER else self.name


def _metric(
    kind: str,
    name: str,
    unit: str,
    labels: tuple[str, ...],
    basis: str,
    text: str,
    derived: str,
    values: tuple[tuple[str, ...], ...] = (),
) -> Metric:
    return Metric(name, kind, unit, labels, text, basis, derived, values)


UNITS = ("icu", "mem", "vxm", "mxm", "sxm", "c2c")

METRICS: tuple[Metric, ...] = (
    # --- the run ---------------------------------------------------------------------------------
    _metric(
        GAUGE,
        "lpu_run_info",
        "info",
        ("verb", "topology", "chip_type"),
        FACT,
        "1, with what runs in its labels.",
        "the command and its artifact",
    ),
    _metric(
        GAUGE,
        "lpu_run_start_timestamp_seconds",
        "seconds",
        (),
        WALL,
        "When the exporter started, since the epoch.",
        "the host's clock",
    ),
    _metric(
        GAUGE,
        "lpu_run_end_timestamp_seconds",
        "seconds",
        (),
        WALL,
        "When the command's work ended, since the epoch; 0 before.",
        "the host's clock",
    ),
    _metric(GAUGE, "lpu_chips", "chips", (), FACT, "Chips of the running machine.", "the artifact"),
    _metric(
        GAUGE,
        "lpu_processes",
        "processes",
        (),
        FACT,
        "Processes that the chips are spread over.",
        "the placement",
    ),
    # --- time ------------------------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_virtual_cycles",
        "cycles",
        (),
        EXACT,
        "The virtual global clock: cycles that every chip has reached.",
        "the least of all chips' clocks in the shared mapping",
    ),
    _metric(
        COUNTER,
        "lpu_virtual_seconds",
        "seconds",
        (),
        EXACT,
        "Virtual time: cycles by the chip's clock rate, those that faults cost too, and host "
        "transfers (estimated).",
        "the virtual clock, plus the PCIe model of the launches done",
    ),
    _metric(
        COUNTER,
        "lpu_wall_seconds",
        "seconds",
        (),
        WALL,
        "Wall time since the chips of the run began.",
        "the driver's clock",
    ),
    _metric(
        GAUGE,
        "lpu_wall_slowdown_ratio",
        "ratio",
        (),
        WALL,
        "Wall seconds per virtual second, over the whole run so far.",
        "lpu_wall_seconds_total / lpu_virtual_seconds_total",
    ),
    _metric(
        GAUGE,
        "lpu_lockstep_skew_cycles",
        "cycles",
        (),
        WALL,
        "Cycles between the fastest and the slowest chip, the greatest since it was last "
        "published. A process notes its chips' clocks once a millisecond or, with many, less "
        "often.",
        "chips' clocks in the shared mapping, looked at five times a second",
    ),
    _metric(
        COUNTER,
        "lpu_lockstep_violations",
        "violations",
        ("kind",),
        EXACT,
        "Vectors that were not the scheduled ones (arrival), and launches that ended at "
        "another cycle than predicted (retirement). Any one ends the run.",
        "the error that ended the run",
        (("arrival", "retirement"),),
    ),
    _metric(
        COUNTER,
        "lpu_launches",
        "launches",
        (),
        EXACT,
        "Launches that all processes have finished.",
        "counts in the shared mapping",
    ),
    # --- chips -----------------------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_chip_virtual_cycles",
        "cycles",
        PLACE,
        EXACT,
        "Cycles that a chip has reached; of a node or rack, its slowest chip.",
        "chips' clocks in the shared mapping",
    ),
    _metric(
        COUNTER,
        "lpu_retired_blocks",
        "blocks",
        (*PLACE, "unit"),
        EXACT,
        "Blocks (instructions with their repeats) of finished launches, by functional unit.",
        "the programs' block tables x launches",
        ((), (), (), UNITS),
    ),
    _metric(
        COUNTER,
        "lpu_retired_instructions",
        "instructions",
        (*PLACE, "unit"),
        EXACT,
        "Single instructions of finished launches, repeats and gangs counted, by functional unit.",
        "the programs' block tables x launches",
        ((), (), (), UNITS),
    ),
    _metric(
        GAUGE,
        "lpu_sram_used_bytes",
        "bytes",
        PLACE,
        EXACT,
        "SRAM that the memory image fills: weights and tables. What a run itself writes, as "
        "the KV cache, is not counted.",
        "the artifact's memory images",
    ),
    _metric(
        GAUGE, "lpu_sram_capacity_bytes", "bytes", PLACE, EXACT, "SRAM there is.", "the chip's spec"
    ),
    # --- links between chips ---------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_link_vectors",
        "vectors",
        LINK,
        EXACT,
        "Vectors sent on a directed link by finished launches.",
        "the programs' Sends x launches",
    ),
    _metric(
        COUNTER,
        "lpu_link_bytes",
        "bytes",
        LINK,
        EXACT,
        "Bytes of those vectors' packets on the wire.",
        "vectors x packet_bytes of the spec",
    ),
    _metric(
        COUNTER,
        "lpu_link_busy_cycles",
        "cycles",
        LINK,
        EXACT,
        "Cycles for which a directed link carried vectors.",
        "vectors x packet bytes / bytes per cycle of a link",
    ),
    _metric(
        GAUGE,
        "lpu_link_busy_ratio",
        "ratio",
        LINK,
        EXACT,
        "Share of the finished launches' cycles for which a directed link was busy; of a node "
        "or rack, its busiest link.",
        "busy cycles / cycles of the launches",
    ),
    _metric(
        COUNTER,
        "lpu_fec_corrected_vectors",
        "vectors",
        LINK,
        EXACT,
        "Vectors with one wrong bit, which FEC corrected. Links fail as --faults says.",
        "the fault plan's draws of the finished launches",
    ),
    _metric(
        COUNTER,
        "lpu_fec_uncorrectable_vectors",
        "vectors",
        LINK,
        EXACT,
        "Vectors with an error beyond FEC: detected, their launch replayed.",
        "the fault plan's draws of the finished launches",
    ),
    # --- what failed and went on -----------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_sram_upset_words",
        "words",
        ("verdict",),
        EXACT,
        "Parts of 16 bytes of stored words with one wrong bit, which SECDED corrected, or with "
        "two, which it detected.",
        "the fault plan's draws of the finished launches",
        (("corrected", "detected"),),
    ),
    _metric(
        COUNTER,
        "lpu_replays",
        "replays",
        (),
        EXACT,
        "Attempts at a launch that failed on the modelled machine, the launch being run again.",
        "the fault plan's draws of the finished launches",
    ),
    _metric(
        COUNTER,
        "lpu_fault_cost_cycles",
        "cycles",
        (),
        EXACT,
        "Cycles that faults of the modelled machine cost beside those of the launches.",
        "the fault plan's draws of the finished launches",
    ),
    _metric(
        COUNTER,
        "lpu_recoveries",
        "recoveries",
        ("kind",),
        FACT,
        "Failures that the run survived: GPU nodes whose requests went to others, chip "
        "processes replaced, nodes of the modelled machine whose place a spare took.",
        "the GPU pool, the supervisor, the fault plan",
        (("gpu_node", "chip_process", "spare_node"),),
    ),
    _metric(
        COUNTER,
        "lpu_refused_accesses",
        "accesses",
        ("kind",),
        FACT,
        "Strangers refused: attachments to the shared mapping without the run's token, and "
        "vectors or logits not written with it.",
        "counts in the shared mapping",
        (("attachment", "vector"),),
    ),
    _metric(
        COUNTER,
        "lpu_replayed_positions",
        "positions",
        (),
        FACT,
        "Positions that GPU nodes computed again because another node was lost.",
        "the GPU pool",
    ),
    _metric(
        COUNTER,
        "lpu_saturated_values",
        "values",
        ("kind",),
        EXACT,
        "Values that conversions lost to a narrower range, by what they were converted to.",
        "counts of every chip, when the run ends",
        (("fp16", "int32", "int8"),),
    ),
    # --- tokens ----------------------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_tokens",
        "tokens",
        SERVED,
        FACT,
        "Tokens generated.",
        "the driver; experiments: their reports",
    ),
    _metric(
        COUNTER,
        "lpu_prompt_tokens",
        "tokens",
        SERVED,
        FACT,
        "Tokens of prompts that were read.",
        "the driver; experiments: their reports",
    ),
    _metric(
        GAUGE,
        "lpu_virtual_tokens_per_second",
        "tokens_per_second",
        SERVED,
        ESTIMATED,
        "Tokens per second of virtual time, prompts and host transfers included. Cycles are "
        "exact, transfers and GPUs estimated.",
        "tokens / virtual seconds",
    ),
    _metric(
        GAUGE,
        "lpu_wall_tokens_per_second",
        "tokens_per_second",
        SERVED,
        WALL,
        "Tokens per second of wall time since the chips began.",
        "tokens / wall seconds",
    ),
    # --- serving ---------------------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_requests",
        "requests",
        SERVED,
        FACT,
        "Requests that came, refused ones too.",
        "the experiment's report",
    ),
    _metric(
        COUNTER,
        "lpu_slo_kept_requests",
        "requests",
        SERVED,
        ESTIMATED,
        "Requests that kept the SLO.",
        "the experiment's report, in virtual time",
    ),
    _metric(
        COUNTER,
        "lpu_refused_requests",
        "requests",
        SERVED,
        FACT,
        "Requests refused because they could never fit, or failed for good.",
        "the experiment's report",
    ),
    _metric(
        HISTOGRAM,
        "lpu_time_to_first_token_seconds",
        "seconds",
        SERVED,
        ESTIMATED,
        "Virtual time from a request's arrival to its first token.",
        "exact cycles on LPUs, the roofline on GPUs",
    ),
    _metric(
        HISTOGRAM,
        "lpu_time_per_output_token_seconds",
        "seconds",
        SERVED,
        ESTIMATED,
        "Virtual time per token after the first, a request's mean.",
        "exact cycles on LPUs, the roofline on GPUs",
    ),
    _metric(
        GAUGE,
        "lpu_pool_utilisation_ratio",
        "ratio",
        (*SERVED, "pool"),
        ESTIMATED,
        "Share of virtual time for which a pool's servers worked for it, or for a stage.",
        "the experiment's report",
    ),
    _metric(
        GAUGE,
        "lpu_pool_queue_mean_requests",
        "requests",
        (*SERVED, "pool"),
        ESTIMATED,
        "Requests that waited for a pool or stage, mean over virtual time.",
        "the experiment's report",
    ),
    _metric(
        GAUGE,
        "lpu_pool_queue_peak_requests",
        "requests",
        (*SERVED, "pool"),
        ESTIMATED,
        "Requests that waited for a pool or stage, at most.",
        "the experiment's report",
    ),
    _metric(
        COUNTER,
        "lpu_gpu_link_bytes",
        "bytes",
        (*SERVED, "kind"),
        EXACT,
        "Bytes over the links between GPUs and LPUs: tokens, logits, kv, activations, json.",
        "the experiment's ledgers",
    ),
    _metric(
        GAUGE,
        "lpu_speedup_ratio",
        "ratio",
        SERVED,
        ESTIMATED,
        "How many times faster than GPUs alone, in virtual time.",
        "the experiment's report",
    ),
    # --- speculative decoding --------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_speculative_steps",
        "steps",
        ("drafter",),
        FACT,
        "Steps of drafting and verifying; each gives one token of the target besides the "
        "accepted ones.",
        "every step, when it is done",
        (("lpu", "gpu", "lookup"),),
    ),
    _metric(
        COUNTER,
        "lpu_draft_tokens",
        "tokens",
        ("drafter", "verdict"),
        FACT,
        "Drafted tokens: accepted, rejected, or discarded behind a rejection.",
        "every step, when it is done",
        (("lpu", "gpu", "lookup"), ("accepted", "rejected", "discarded")),
    ),
    # --- agents ----------------------------------------------------------------------------------
    _metric(
        COUNTER,
        "lpu_router_decisions",
        "decisions",
        ("platform", "pool", "kind"),
        FACT,
        "Steps of agents by the pool they were sent to (lpu, gpu, tool).",
        "the experiment's report",
    ),
    _metric(
        COUNTER,
        "lpu_router_messages",
        "messages",
        ("platform", "verdict"),
        FACT,
        "Messages that pools and orchestrator took, and those refused as damaged.",
        "the experiment's report",
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
