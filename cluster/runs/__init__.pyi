from .artifact_check import check_artifact
from .collectives import (
    Words,
    collective_rows,
    compile_functional,
    draw_sweep,
    random_words,
    run_functional,
    sweep_sizes,
    write_csv,
)
from .generation import GenerationResult, Listener, launches_of, planned_launches, run_generation
from .launch import cores, launch_everywhere
from .publish import SERVED, publish_generation
from .spare_generation import generate_on_spares
from .workloads import (
    Workload,
    check_workload,
    figures,
    random_encoder,
    random_matmul,
    random_network,
    run_workload,
)

__all__ = [
    "SERVED",
    "GenerationResult",
    "Listener",
    "Words",
    "Workload",
    "check_artifact",
    "check_workload",
    "collective_rows",
    "compile_functional",
    "cores",
    "draw_sweep",
    "figures",
    "generate_on_spares",
    "launch_everywhere",
    "launches_of",
    "planned_launches",
    "publish_generation",
    "random_encoder",
    "random_matmul",
    "random_network",
    "random_words",
    "run_functional",
    "run_generation",
    "run_workload",
    "sweep_sizes",
    "write_csv",
]
