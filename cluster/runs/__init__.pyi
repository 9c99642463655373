from .artifact_check import check_artifact
from .collectives import (
    Words,
    compile_functional,
    random_words,
    run_functional,
    sweep_sizes,
    write_csv,
)
from .fabric import Collective, follow_route, machine_of, run_collective, wiring_facts
from .generation import GenerationResult, Listener, launches_of, planned_launches, run_generation
from .launch import cores, launch_everywhere
from .plans import plan_models, write_plans
from .publish import SERVED, publish_generation
from .settings import (
    MOST_BYTES,
    ONLY_WITH_RUN,
    CollectiveSettings,
    ComparedGpu,
    GenerateSettings,
    Operation,
    PlanSettings,
    Wiring,
    WiringChip,
)
from .spare_generation import generate_on_spares
from .texts import Generated, generate, generation_facts, generation_json
from .workloads import (
    CompiledWorkload,
    check_workload,
    figures,
    random_encoder,
    random_matmul,
    random_network,
    run_workload,
)

__all__ = [
    "MOST_BYTES",
    "ONLY_WITH_RUN",
    "SERVED",
    "Collective",
    "CollectiveSettings",
    "ComparedGpu",
    "CompiledWorkload",
    "GenerateSettings",
    "Generated",
    "GenerationResult",
    "Listener",
    "Operation",
    "PlanSettings",
    "Wiring",
    "WiringChip",
    "Words",
    "check_artifact",
    "check_workload",
    "compile_functional",
    "cores",
    "figures",
    "follow_route",
    "generate",
    "generate_on_spares",
    "generation_facts",
    "generation_json",
    "launch_everywhere",
    "launches_of",
    "machine_of",
    "plan_models",
    "planned_launches",
    "publish_generation",
    "random_encoder",
    "random_matmul",
    "random_network",
    "random_words",
    "run_collective",
    "run_functional",
    "run_generation",
    "run_workload",
    "sweep_sizes",
    "wiring_facts",
    "write_csv",
    "write_plans",
]
