"""Where a token's cycles go, and whose they are: the machine's, by its floor, or the schedule's.

What would move a bottleneck is planned before it is proposed: ``try_changes`` compiles the
model again with one thing changed at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from chip.errors import LpuError
from chip.spec import changed_spec
from programs.decoder import C2C, MATMUL, NODE, SOFTMAX, VXM, machine_sizes
from programs.plans.floor import Floor
from programs.plans.plan import Plan, compile_plan

INSTALL, PIPELINE = "weights_install", "pipeline"
#: What each phase is.
PHASES = {
    INSTALL: "weights streaming into the planes",
    MATMUL: "planes reloading and draining between weights",
    VXM: "norms, gates, quantisation and sums",
    SOFTMAX: "scores and softmax",
    C2C: "all-reduces between the chips of a stage",
    PIPELINE: "handing x from stage to stage",
}
#: What of a floor the phases that hang together answer to, and what they are in one phrase.
_GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    ((INSTALL, MATMUL), ("weights", "head"), "weights through the planes"),
    ((SOFTMAX,), ("attention",), PHASES[SOFTMAX]),
    ((C2C,), ("exchange",), PHASES[C2C]),
    ((VXM,), ("latency",), PHASES[VXM]),
    ((PIPELINE,), ("boundaries",), PHASES[PIPELINE]),
)


@dataclass(frozen=True)
class Bottleneck:
    """The phases that take most of a token's cycles.

    phases: by name.  cycles: theirs, of ``of_cycles``.  machine_cycles: what the floor says that
    no schedule could do without.
    """

    phases: tuple[str, ...]
    what: str
    cycles: int
    of_cycles: int
    machine_cycles: int

    def __str__(self) -> str:
        share = self.machine_cycles / self.cycles
        return (
            f"{self.what}: {self.cycles / self.of_cycles:.0%} of a token's cycles; the machine "
            f"needs {share:.0%} of these, the schedule adds {1 - share:.0%}"
        )


def bottleneck_of(phases: Mapping[str, int], floor: Floor) -> Bottleneck:
    """The longest of the phases, those of one term of the floor taken together."""
    found = [
        Bottleneck(
            names,
            what,
            sum(phases[name] for name in names),
            sum(phases.values()),
            sum(getattr(floor, term) for term in terms),
        )
        for names, terms, what in _GROUPS
    ]
    worst = max(found, key=lambda group: group.cycles)
    return replace(worst, machine_cycles=min(worst.cycles, worst.machine_cycles))


@dataclass(frozen=True)
class TriedChange:
    """A plan with one thing changed, in the words of ``lpu plan``.

    cycles, interval_cycles: of a token and of a beat of the full belt; no change touches the clock,
    so fewer cycles are less time.  problem: why there is no such plan; its cycles are then 0.
    """

    change: str
    chips: int = 0
    cycles: int = 0
    interval_cycles: int = 0
    problem: str = ""


def try_changes(plan: Plan, bottleneck: Bottleneck) -> list[TriedChange]:
    """What might move ``bottleneck``, each planned: scheduled, not checked and not run."""
    return [_tried(plan, text, change) for text, change in _changes(plan, bottleneck).items()]


def _changes(plan: Plan, bottleneck: Bottleneck) -> dict[str, dict[str, Any]]:
    """Options of ``lpu plan`` and what they mean for ``compile_plan``; ``spec`` for the chip."""
    spec, tp, chips = plan.spec, plan.layout.tp, plan.chips
    found: dict[str, dict[str, Any]] = {}
    phases = bottleneck.phases
    if MATMUL in phases and plan.dtype != "int8":
        found["--dtype int8"] = {"dtype": "int8"}
    if SOFTMAX in phases and plan.context > 1:
        found[f"--context {plan.context // 2}"] = {"context": plan.context // 2}
    if C2C in phases or PIPELINE in phases:
        least = spec.hop_cycles - spec.send_to_receive_cycles + spec.link_wire_cycles + 1
        hop = max(spec.hop_cycles // 2, least)
        found[f"--set chip.hop_cycles={hop}"] = {"spec": {"hop_cycles": hop}}
        rate = 2 * spec.link_bytes_per_s
        found[f"--set chip.link_bytes_per_s={rate}"] = {"spec": {"link_bytes_per_s": rate}}
    if PIPELINE in phases and plan.pipeline.topology.name not in ("node", "chain"):
        found["--wiring chain"] = {"wiring": "chain"}
    if C2C in phases and tp > 1:
        found[f"--chips {chips} --tp {tp // 2}"] = {"tp": tp // 2}
    if {MATMUL, SOFTMAX, VXM} & set(phases) and tp < 8 and chips % (2 * tp) == 0:
        found[f"--chips {chips} --tp {2 * tp}"] = {"tp": 2 * tp}
    elif {MATMUL, SOFTMAX, VXM} & set(phases) and tp < 8:
        found[f"--chips {2 * chips} --tp {2 * tp}"] = {"tp": 2 * tp, "chips": 2 * chips}
    if plan.batch > 1 and chips >= NODE:
        more = next((size for size in machine_sizes(_wiring(plan)) if size >= 2 * chips), chips)
        found[f"--chips {more}"] = {"chips": more}
    return found


def _wiring(plan: Plan) -> str:
    """The name of the plan's wiring among ``programs.decoder.WIRINGS``."""
    return "chain" if plan.pipeline.topology.name == "chain" else "usual"


def _tried(plan: Plan, text: str, change: dict[str, Any]) -> TriedChange:
    asked: dict[str, Any] = {
        "dtype": plan.dtype,
        "context": plan.context,
        "batch": plan.batch,
        "chips": plan.chips,
        "tp": plan.layout.tp,
        "wiring": _wiring(plan),
    }
    asked |= {name: value for name, value in change.items() if name != "spec"}
    try:
        spec = changed_spec(plan.spec, change.get("spec", {}))
        other = compile_plan(plan.name, plan.config, spec, **asked)
    except LpuError as error:
        return TriedChange(text, problem=str(error))
    return TriedChange(text, other.chips, other.cycles, other.interval_cycles)
