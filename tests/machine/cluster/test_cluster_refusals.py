"""What commands and experiments refuse, in their own words: one line, exit code 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chip.spec import ChipSpec
from cluster.bench import rows as bench
from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.agentic import messages as agentic_messages
from cluster.experiments.agentic import run_agents
from cluster.experiments.agentic.messages import MessageError, decode
from cluster.experiments.agentic.routing import Custom, _load
from cluster.experiments.serving import (
    Lengths,
    RooflineCost,
    Scaling,
    Slo,
    bursts,
    poisson,
    read_trace,
)
from cluster.gpu import GpuPool, collective_seconds, load_gpu_spec, ray_pool
from cluster.gpu import link as gpu_link
from cluster.gpu.spec import GPU_PRESETS, field_source
from cluster.metrics import Board, RunWatch
from cluster.processes.ray_session import _join
from cluster.report import report_request
from cluster.report.run_file import new_run, read_run
from cluster.runs import compile_functional
from programs.artifact import ArtifactError, Bindings
from programs.decoder import home_of

# --- commands -------------------------------------------------------------------------------------

#: The command line, and what it is refused with; PATH is a file that the test makes.
COMMANDS: dict[str, tuple[str, str]] = {
    "bench row": ("bench nothing", "bench nothing: no such row; the rows are "),
    "agents": ("experiment agentic --requests 0", "--requests 0: use 1 to "),
    "agents' slo": ("experiment agentic --slo 0", "--slo 0.0: use a finite number of seconds"),
    "router": ("experiment agentic --router rulez", "--router rulez: use rule, learned or module"),
    "scaling": (
        "experiment load --scale-queue 3",
        "--scale-queue: the GPU pool does not scale; add --gpu-groups-max",
    ),
    "no GPUs": (
        "experiment load --pool lpu --gpu-groups-max 3",
        "--gpu-groups-max with --pool lpu: no GPU serves; leave one out",
    ),
    "limit": ("experiment load --limit 3", "--limit is of a --trace: name one, or use --requests"),
    "no prompts": ("experiment speculative --prompts PATH", "has no prompt; put one on each line"),
    "prompts": ("experiment speculative --prompts /no", "--prompts /no: cannot be read: "),
    "concurrent": (
        "experiment speculative --concurrent 3 --prompt x",
        "--concurrent 3 with 1 prompts: give as many prompts with --prompts, or fewer at once",
    ),
    "temperature": (
        "experiment speculative --temperature -1",
        "--temperature -1.0: use a finite number, 0 or more",
    ),
    "kill": ("experiment speculative --kill-after -1", "--kill-after -1: use 0 to "),
    "handover": ("experiment disaggregated --handover x", "handover x: use "),
    "groups": ("experiment disaggregated --gpu-groups 0", "groups 0: use 1 to "),
    "generate": ("generate --temperature -1", "--temperature -1.0: use a finite number, 0 or more"),
    "fabric": ("fabric collective --op gossip --chips 8", "gossip"),
    "fabric bytes": ("fabric collective --op all-reduce --chips 8 --bytes 0", "use 1 or more"),
    "change": (
        "plan --model draft --set chip.hop_cycles=x",
        "'x' is no whole number; write 650 or",
    ),
    "field": (
        "plan --model draft --set hop=3",
        "--set hop=3: use chip.FIELD=VALUE, or VALUE of chips",
    ),
    "plan sweep": (
        "plan --model draft --sweep chips=x",
        "--sweep chips=x: 'x' is no whole number",
    ),
    "plot": ("plan --model draft --sweep chips=1..2 --plot a.pdf", "a name that ends in .png or"),
    "sweep": ("workload matmul --sweep 1:2", "use from:to:step, for instance 1376:3500:118"),
    "products": ("workload matmul --sweep 1:100000:1", "products; use 1 to "),
    "sweep and run": (
        "workload matmul --sweep 16:32:16 --run",
        "--sweep compiles and checks many products: leave out --run and --output",
    ),
    "nodes": ("workload matmul --chips 3", "--chips 3: a node has 1, 2, 4 or 8 chips; use one of"),
    "save": ("generate --save a.txt", "--save a.txt: use a name that ends in .json"),
    "report": ("generate --report a.txt", "--report a.txt: use a name that ends in .html"),
    "trace": ("generate --trace a.txt", "use a name that ends in .json, .json.gz or .pftrace"),
    "launches": ("generate --trace a.json --trace-launches 0", "--trace-launches 0: use 1 or more"),
    "assembly": ("assemble /nowhere.asm -o x.lpu", "/nowhere.asm: cannot be read: "),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_are_refused(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line, says = COMMANDS[name]
    path = tmp_path / "empty.txt"
    path.write_text("\n\n", encoding="utf-8")
    assert run([str(path) if word == "PATH" else word for word in line.split()]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and says in error


# --- experiments and tables -----------------------------------------------------------------------


def load_router(name: str) -> object:
    return _load(name, None)


#: name: (what is asked for, the error, its text)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rate": (
        lambda: poisson(0.0, 10, Lengths(), 0),
        InputError,
        "rate 0.0: use a finite number of requests/s above 0",
    ),
    "requests": (lambda: poisson(1.0, 0, Lengths(), 0), InputError, "requests 0: use 1 to "),
    "burst": (
        lambda: bursts(1.0, 10, Lengths(), 0, 0),
        InputError,
        "burst 0: use 1 to .* requests",
    ),
    "median": (
        lambda: Lengths(prompt_median=0),
        InputError,
        "prompt_median 0: use 1 to [0-9,]+ tokens",
    ),
    "spread": (lambda: Lengths(spread=4.0), InputError, "spread 4.0: use a number from 0 to 3"),
    "groups": (
        lambda: Scaling(3, 2),
        InputError,
        "GPU groups 3 to 2: use 1 or more, at most .*, and no fewer at most than at least",
    ),
    "queue": (
        lambda: Scaling(1, 2, queue=0),
        InputError,
        "queue 0 per GPU group: use 1 to 1,000,000 requests",
    ),
    "idle": (
        lambda: Scaling(1, 2, idle_s=0.0),
        InputError,
        "idle_s 0.0: use more than 0 and at most .* s",
    ),
    "slo": (
        lambda: Slo(0.0, 1.0),
        InputError,
        "ttft_s 0.0: use a finite number of seconds above 0",
    ),
    "batch": (
        lambda: RooflineCost(None, None, max_batch=0),
        InputError,  # type: ignore[arg-type]
        "batch 0: use 1 to .* requests",
    ),
    "operation": (
        lambda: collective_seconds(GPU_PRESETS["h100"], "gossip", 8, 1),
        InputError,
        "--op gossip: known are all-reduce, reduce-scatter",
    ),
    "kind": (
        lambda: gpu_link.LinkLedger(gpu_link.LINK_PRESETS["400gbe"]).send("smoke", 1, 0.0),
        ValueError,
        "transfer kind 'smoke': known are tokens, logits",
    ),
    "gpu field": (
        lambda: field_source("h100", "colour"),
        InputError,
        "gpu.colour is no field; known: name",
    ),
    "link field": (
        lambda: gpu_link.field_source("400gbe", "colour"),
        InputError,
        "link.colour is no field; known: name",
    ),
    "no nodes": (
        lambda: ray_pool(Path("none"), 0, None).__enter__(),
        InputError,
        "a GPU pool of 0 nodes: use 1 or more",
    ),
    "no members": (
        lambda: GpuPool([], lambda: None),
        InputError,  # type: ignore[arg-type, return-value]
        "a GPU pool of 0 nodes: use 1 or more",
    ),
    "no function": (lambda: load_router("math:pi"), InputError, "--router math:pi: is no function"),
    "no module": (
        lambda: load_router("nowhere:choose"),
        InputError,
        "--router nowhere:choose: cannot be imported: .*; name a function of a module",
    ),
    "another pool": (
        lambda: Custom("builtins:len").choose({"kind": "plan"}),  # type: ignore[arg-type, typeddict-item]
        InputError,
        "--router builtins:len: it returned 1; use lpu or gpu",
    ),
    "a function that fails": (
        lambda: Custom("math:floor").choose({"kind": "plan"}),  # type: ignore[arg-type, typeddict-item]
        InputError,
        "--router math:floor: the function failed with TypeError: ",
    ),
    "models": (
        lambda: run_agents([], SimpleNamespace(lpu={}, gpu={}), None, 0, 1.0, "x", None),  # type: ignore[arg-type]
        InputError,
        "each pool needs two models, draft and target",
    ),
    "no colon": (
        lambda: load_router("rulez"),
        InputError,
        "--router rulez: use rule, learned or module:fun",
    ),
    "ray client": (
        lambda: _join(None, "ray://somewhere"),
        InputError,
        "chips and driver share memory, so the driver must run on a node of the cluster",
    ),
    "no checkpoint": (
        lambda: home_of(outputs({})),
        ArtifactError,
        "the artifact names no checkpoint: name its directory with --model",
    ),
    "outputs": (
        lambda: Bindings.of(outputs({"y": [[0, 1, 2]] * 3})),
        ArtifactError,
        r"output 'y' is not four places \[slice, word, words\] in SRAM; compile it again",
    ),
    "bench": (lambda: bench.select(["nothing"]), InputError, "bench nothing: no such row; the"),
    "no memory": (
        lambda: (
            RunWatch(Board(), "run")
            .watching(
                None,
                SimpleNamespace(mapping=None),
                None,  # type: ignore[arg-type]
            )
            .__enter__()
        ),
        ValueError,
        "a run can be watched only once it has its memory",
    ),
    "not a run": (lambda: new_run("generate", "x" * 10**6, [], {}), ValueError, "not a run: "),
    "large machine": (
        lambda: compile_functional(
            SimpleNamespace(chips=10_440),
            "all-reduce",
            2048,
            ChipSpec(),
            "int32",  # type: ignore[arg-type]
        ),
        InputError,
        "--run on 10440 chips: data are moved on .* or fewer; leave out --run for the",
    ),
    "report name": (
        lambda: report_request(None, Path("a.txt")),
        InputError,
        "--report a.txt: use a name that ends in .html",
    ),
}


def outputs(places: dict[str, Any]) -> Any:
    return SimpleNamespace(bindings={"outputs": places}, model={}, spec=ChipSpec())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    act, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says) as caught:
        act()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no table [gpu]; put the fields under it"),
        ("[gpu]\nbase = 'h800'", "gpu.base 'h800' is not one of a100"),
        ("[gpu]\ncolour = 1", "gpu.colour is no field; known: name"),
        ("[gpu]\nhbm_bytes = 1.5", "gpu.hbm_bytes must be int, not float"),
        ("[gpu]\nfp16_flops = 0\nfp8_flops = 0", "set one of fp16_flops, fp8_flops and fp4_flops"),
    ],
)
def test_gpu_files_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(says)):
        load_gpu_spec(path)


TRACE = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xfe\x00", "is no UTF-8 text; a trace is a CSV file"),
        ((TRACE + '0,"' + "x" * 200_000 + '",3\n').encode(), "is no CSV file: "),
        ((TRACE + "0,x,3\n").encode(), "is 'x'; use a whole number of tokens"),
        ((TRACE + "0,99999999999,3\n").encode(), "is 99999999999; use 0 to"),
        ((TRACE + "x,3,3\n").encode(), "is 'x'; use a time such as"),
    ],
)
def test_traces_that_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(says)):
        read_trace(path)


def test_traces_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE + "0,3,3\n1,3,3\n", encoding="utf-8")
    assert len(read_trace(path).prompt_tokens) == 2
    with monkeypatch.context() as patch:
        patch.setattr("cluster.experiments.serving.arrivals.MAX_REQUESTS", 1)
        with pytest.raises(InputError, match="more than 1 requests; cut the file"):
            read_trace(path)
    monkeypatch.setattr("cluster.experiments.serving.arrivals.MAX_FILE_BYTES", 20)
    with pytest.raises(InputError, match="a trace has at most 20; --limit N reads the first N"):
        read_trace(path)
    assert len(read_trace(path, limit=2)) == 2
    monkeypatch.setattr("cluster.experiments.serving.arrivals.MAX_LINE", 100)
    path.write_text(TRACE + "0,3,3\n1,3," + "3" * 100, encoding="utf-8")
    assert len(read_trace(path, limit=1)) == 1  # what is not needed is not read
    with pytest.raises(InputError, match="a line of 100 characters or more; is it a"):
        read_trace(path, limit=2)
    with pytest.raises(InputError, match="there is no such file; name a CSV file of requests"):
        read_trace(tmp_path / "none.csv")


def test_run_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_run(path)
    changed = new_run("generate", "a title", [("chips", "8")], {}) | {"title": 3}
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(InputError, match=r"is no run file: .*; write one with --save"):
        read_run(path)
    for text in ("{}", "[1]", "3"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError):
            read_run(path)


def test_messages_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        b"\xff": "not UTF-8",
        b"{": "not JSON: ",
        b'{"a": 1, "a": 2}': "a name twice in one object",
        b'{"a": NaN}': "is no JSON number",
    }
    for raw, says in said.items():
        with pytest.raises(MessageError, match=says) as caught:
            decode(raw)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(agentic_messages, "MAX_BYTES", 3)
    with pytest.raises(MessageError, match="4 bytes; a message has at most 3"):
        decode(b"1234")
