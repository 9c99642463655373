"""How a verb's help reads: its options in groups where they are many, and an example."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperOption

#: A verb with fewer options has one list of them.
MANY = 9

MODEL, LOAD, GPUS, SCALING = "Model", "Prompts and load", "GPUs", "Scaling"
MACHINE, RUN, OUTPUT, METRICS = "Machine (LPUs)", "Run", "Output", "Metrics"

#: The group of every option by its parameter's name; others stay among "Options".
PANELS: dict[str, str] = {
    **dict.fromkeys(
        (
            "model",
            "reference",
            "lpu_model",
            "gpu_model",
            "draft_model",
            "artifact",
            "dtype",
            "context",
            "batch",
            "layers",
            "m",
            "k",
            "n",
            "split",
            "operation",
            "nbytes",
            "algorithm",
            "smallest",
            "largest",
        ),
        MODEL,
    ),
    **dict.fromkeys(
        (
            "prompt",
            "prompts",
            "text",
            "system",
            "chat",
            "prompt_tokens",
            "output_tokens",
            "max_new_tokens",
            "arrivals",
            "rate",
            "requests",
            "burst",
            "spread",
            "limit",
            "slo",
            "slo_ttft",
            "slo_tpot",
            "tokens",
        ),
        LOAD,
    ),
    **dict.fromkeys(
        ("gpu", "gpu_tp", "gpu_groups", "gpu_dtype", "gpu_nodes", "max_batch", "cpx"),
        GPUS,
    ),
    **dict.fromkeys(
        ("gpu_groups_max", "scale_queue", "scale_wait", "scale_idle", "scale_start"),
        SCALING,
    ),
    **dict.fromkeys(
        (
            "chips",
            "tp",
            "pp",
            "chunk",
            "chip",
            "pipelines",
            "link",
            "set_",
            "what_if",
            "wiring",
            "lpu_cycles_per_token",
            "lpu_interval_cycles",
            "overlap",
            "lpu_ffn_cycles",
            "ppm",
            "budget",
        ),
        MACHINE,
    ),
    **dict.fromkeys(
        (
            "chips_per_actor",
            "in_process",
            "address",
            "sync",
            "faults",
            "seed",
            "temperature",
            "ignore_eos",
            "on",
            "strict_range",
            "run",
            "sweep",
            "buckets",
            "prompt",
            "advice",
            "prices",
            "pool",
            "platform",
            "handover",
            "router",
            "corrupt",
            "gamma",
            "mode",
            "drafter",
            "lpu_verify",
            "alpha",
            "concurrent",
            "kill_after",
            "replace_lost",
            "entry",
            "iterations",
            "program_cycles",
            "deskew_interval",
        ),
        RUN,
    ),
    **dict.fromkeys(
        (
            "trace",
            "trace_window",
            "trace_launches",
            "save",
            "report",
            "report_page",
            "plot",
            "csv",
            "csv_file",
            "frontier",
            "output",
            "as_json",
        ),
        OUTPUT,
    ),
    **dict.fromkeys(("metrics_port", "metrics_host", "metrics_linger"), METRICS),
}
#: Where a verb's option of that name is something else.
_OTHERWISE: dict[tuple[str, str], str] = {
    ("load", "trace"): LOAD,
    ("disaggregated", "trace"): LOAD,
    ("collective", "gpu"): OUTPUT,
    ("speculative", "link"): GPUS,
    ("bert", "tokens"): MODEL,
}

#: An example of every verb, by its name.
EXAMPLES: dict[str, str] = {
    "generate": 'lpu generate --in-process --prompt "def " --max-new-tokens 16',
    "chat": "lpu chat --model DIR --in-process --system 'Be brief.'",
    "evaluate": "lpu evaluate --dtype fp16 --tokens 256 --layers",
    "quantise": "lpu quantise --model DIR --chips 8 --text prose.txt --to DIR-int8",
    "compile": "lpu compile --chips 4 -o model.lpu",
    "assemble": "lpu assemble sender.asm receiver.asm -o pair.lpu",
    "check": "lpu check model.lpu",
    "inspect": "lpu inspect model.lpu --chip 1 --limit 40",
    "run": "lpu run model.lpu --trace run.json",
    "plan": "lpu plan --model llama-2-70b --context 4096 --set chip.hop_cycles=400",
    "belt": 'lpu belt --tp 8 --pp 4 --prompt "def " --prompt "import "',
    "bench": "lpu bench decode_vs_numpy",
    "report": "lpu report run.json -o run.html",
    "clean": "lpu clean",
    "info": "lpu fabric info --chips 264",
    "route": "lpu fabric route 0 200 --chips 264",
    "clocks": "lpu fabric clocks --chips 72 --ppm 20",
    "collective": "lpu fabric collective --chips 264 --bytes 1048576 --gpu h100",
    "sweep": "lpu fabric sweep --to 1048576 --csv sizes.csv --plot sizes.svg",
    "speculative": "lpu experiment speculative --gamma 4 --temperature 0",
    "disaggregated": "lpu experiment disaggregated --platform gpu-only --platform lpu-only",
    "agentic": "lpu experiment agentic --router learned --requests 16",
    "load": "lpu experiment load --rate 200 --slo-ttft 0.5 --plot load.svg",
    "matmul": "lpu workload matmul --m 320 --k 320 --n 320 --dtype int8 --run",
    "mlp": "lpu workload mlp --run",
    "resnet50": "lpu workload resnet50 --size 224",
    "bert": "lpu workload bert --model large --chips 8",
    "cholesky": "lpu workload cholesky --n 320 --chips 1 --run",
}


class Verb(TyperCommand):
    """A command with its options in groups and its example below them."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        """As of TyperCommand."""
        super().__init__(name, **settings)
        if name in EXAMPLES:
            self.epilog = f"Example: {EXAMPLES[name]}"
        options = [each for each in self.params if isinstance(each, TyperOption)]
        if len(options) < MANY:
            return
        for option in options:
            key = option.name or ""
            panel = _OTHERWISE.get((name or "", key), PANELS.get(key))
            option.rich_help_panel = option.rich_help_panel or panel
