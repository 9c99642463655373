"""The public face: ``import lpu`` has what the command ``lpu`` has.

    m = lpu.compile("target", chips=8)
    r = m.generate("def ", 8)
    r.text, r.cycles, r.digest, r.chips[0].sram[44, 8186]

Names only: everything lives in the packages below and is loaded when it is first used, so
``import lpu`` takes no time.  ``docs/python-api.md`` shows how they go together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chip.checker import Finding, check
    from chip.encoding import Assembly, assemble, disassemble, read_assembly
    from chip.engine import Chip
    from chip.errors import LpuError
    from chip.isa import Op
    from chip.linking import link
    from chip.program import Program
    from chip.reference import ReferenceChip, look
    from chip.scheduling import (
        Alu,
        Pass,
        Place,
        Schedule,
        Self,
        Stream,
        Symbol,
        program_of,
        relocate,
    )
    from chip.spec import ChipSpec, load_chip_spec
    from cluster.evaluation import EvaluateSettings, evaluate
    from cluster.experiments.agentic import AgenticSettings
    from cluster.experiments.agentic import agentic as experiment_agentic
    from cluster.experiments.serving import DisaggregatedSettings, LoadSettings
    from cluster.experiments.serving import disaggregated as experiment_disaggregated
    from cluster.experiments.serving import load as experiment_load
    from cluster.experiments.speculative import SpeculativeSettings
    from cluster.experiments.speculative import speculative as experiment_speculative
    from cluster.library import CompiledModel, PlanTable
    from cluster.library import compile_named as compile
    from cluster.library import load_compiled as load
    from cluster.library import plan_named as plan
    from cluster.runs import CollectiveSettings, Generated, run_collective
    from interconnect.collectives import CollectivePlan, plan_collective
    from interconnect.vectors import check_fabric
    from interconnect.wiring import Topology, named_topology, topology_of, wired_topology

__all__ = [
    "AgenticSettings",
    "Alu",
    "Assembly",
    "Chip",
    "ChipSpec",
    "CollectivePlan",
    "CollectiveSettings",
    "CompiledModel",
    "DisaggregatedSettings",
    "EvaluateSettings",
    "Finding",
    "Generated",
    "LoadSettings",
    "LpuError",
    "Op",
    "Pass",
    "Place",
    "PlanTable",
    "Program",
    "ReferenceChip",
    "Schedule",
    "Self",
    "SpeculativeSettings",
    "Stream",
    "Symbol",
    "Topology",
    "assemble",
    "check",
    "check_fabric",
    "compile",
    "disassemble",
    "evaluate",
    "experiment_agentic",
    "experiment_disaggregated",
    "experiment_load",
    "experiment_speculative",
    "link",
    "load",
    "load_chip_spec",
    "look",
    "named_topology",
    "plan",
    "plan_collective",
    "program_of",
    "read_assembly",
    "relocate",
    "run_collective",
    "topology_of",
    "wired_topology",
]

#: Where each name is at home: ``module:name``.
_HOMES = {
    "AgenticSettings": "cluster.experiments.agentic:AgenticSettings",
    "Alu": "chip.scheduling:Alu",
    "Assembly": "chip.encoding:Assembly",
    "Chip": "chip.engine:Chip",
    "ChipSpec": "chip.spec:ChipSpec",
    "CollectivePlan": "interconnect.collectives:CollectivePlan",
    "CollectiveSettings": "cluster.runs:CollectiveSettings",
    "CompiledModel": "cluster.library:CompiledModel",
    "DisaggregatedSettings": "cluster.experiments.serving:DisaggregatedSettings",
    "EvaluateSettings": "cluster.evaluation:EvaluateSettings",
    "Finding": "chip.checker:Finding",
    "Generated": "cluster.runs:Generated",
    "LoadSettings": "cluster.experiments.serving:LoadSettings",
    "LpuError": "chip.errors:LpuError",
    "Op": "chip.isa:Op",
    "Pass": "chip.scheduling:Pass",
    "Place": "chip.scheduling:Place",
    "PlanTable": "cluster.library:PlanTable",
    "Program": "chip.program:Program",
    "ReferenceChip": "chip.reference:ReferenceChip",
    "Schedule": "chip.scheduling:Schedule",
    "Self": "chip.scheduling:Self",
    "SpeculativeSettings": "cluster.experiments.speculative:SpeculativeSettings",
    "Stream": "chip.scheduling:Stream",
    "Symbol": "chip.scheduling:Symbol",
    "Topology": "interconnect.wiring:Topology",
    "assemble": "chip.encoding:assemble",
    "check": "chip.checker:check",
    "check_fabric": "interconnect.vectors:check_fabric",
    "compile": "cluster.library:compile_named",
    "disassemble": "chip.encoding:disassemble",
    "evaluate": "cluster.evaluation:evaluate",
    "experiment_agentic": "cluster.experiments.agentic:agentic",
    "experiment_disaggregated": "cluster.experiments.serving:disaggregated",
    "experiment_load": "cluster.experiments.serving:load",
    "experiment_speculative": "cluster.experiments.speculative:speculative",
    "link": "chip.linking:link",
    "load": "cluster.library:load_compiled",
    "load_chip_spec": "chip.spec:load_chip_spec",
    "look": "chip.reference:look",
    "named_topology": "interconnect.wiring:named_topology",
    "plan": "cluster.library:plan_named",
    "plan_collective": "interconnect.collectives:plan_collective",
    "program_of": "chip.scheduling:program_of",
    "read_assembly": "chip.encoding:read_assembly",
    "relocate": "chip.scheduling:relocate",
    "run_collective": "cluster.runs:run_collective",
    "topology_of": "interconnect.wiring:topology_of",
    "wired_topology": "interconnect.wiring:wired_topology",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"lpu has no {name}; it has {', '.join(__all__)}")
    module, _, there = _HOMES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), there)
    return value


def __dir__() -> list[str]:
    return __all__
