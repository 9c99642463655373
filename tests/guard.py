"""What representative runs give, kept in ``guard.json``: no change may alter it unnoticed.

``python -m tests.guard`` runs them and prints what differs; ``--renew`` writes the file anew.
Renew only in a commit that means to change these values, and say there which ones and why.

Everything is asked of the command line with ``--json``, the one contract that outlives every move
of a module.  Left out is what differs between two runs (:data:`UNREPEATABLE`).  Floats are kept to
twelve digits: the last ones of a mean may hang on the processor.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_suffix(".json")
#: Wall time, what is computed from it, and the size of a file that names its checkpoint's place.
UNREPEATABLE = frozenset(
    {
        "wall_seconds",
        "first_token_seconds",
        "wall_tokens_per_second",
        "recovery_seconds",
        "launch_seconds",
        "launch_wall_seconds",
        "run_seconds",
        "run_chip_cycles_per_second",
        "file_bytes",
    }
)
DIGITS = 12

#: The two programs of docs/tutorial.md: 42 on one chip, one more on the other.
SENDER = """\
0: alu[0] MOV s0=imm imm=40f
3: alu[1] ADD_F32 s0=alu0 s1=imm imm=2f out=W0 wo=4 tag=1
11: mem_w[0-3] WRITE a=8 s0=W0 w0=1 dsg=1 want0=1
20: mem_w[0-3] READ a=8 out=W4 wo=1 dcg=24 tag=2
41: c2c[0] SEND s0=W4 w0=1 want0=2 x4/24
"""
RECEIVER = """\
678: c2c[0] RECEIVE out=E16 wo=1 tag=1 x4/24
699: mem_w[0-3] WRITE a=8 s0=E16 w0=1 want0=1 dcg=24
780: mem_w[0-3] READ a=8 out=E16 wo=1 dsg=1 tag=2
782: alu[8] ADD_F32 s0=E16 w0=4 want0=2 s1=imm imm=1f out=E20 wo=4 tag=3
790: mem_e[0-3] WRITE a=8 s0=E20 w0=1 dsg=1 want0=3
"""
DEAD_NODE = """\
seed = 1
[spares]
nodes = 1
[[dead_node]]
node = 1
launch = 3
cycle = 4000
"""
NOISE = """\
seed = 7
[links]
bit_error_rate = 1e-6
[[sram.upset]]
chip = 0
launch = 2
bits = 2
[clocks]
ppm = 50.0
budget_cycles = 4
"""
DEAD_NODE_OF_A_RACK = "[spares]\nnodes = 1\n[[dead_node]]\nnode = 2\nlaunch = 0\ncycle = 1000\n"


class GuardError(Exception):
    """A command of an entry failed."""


@dataclass(frozen=True)
class Entry:
    """Commands that run one after another in a directory of their own.

    files: name -> text of what lies there, beside the shipped checkpoints ``target`` and ``draft``.
    figures: of these paths into the JSON the values are kept, of the whole only its sha256; empty:
    everything is kept.  long: takes many seconds.
    """

    commands: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[str, ...] = ()
    long: bool = False


def _generate(rest: str, faults: str = "") -> Entry:
    command = f"generate --in-process --max-new-tokens 8 {rest}"
    if not faults:
        return Entry((command,))
    return Entry((f"{command} --faults faults.toml",), {"faults.toml": faults})


def _collective(rest: str, long: bool = False) -> Entry:
    return Entry((f"fabric collective --run --in-process {rest}",), long=long)


def _product(rest: str, long: bool = False) -> Entry:
    """A workload, compared with its golden model; then its file, run for the digest."""
    return Entry((f"workload {rest} --run -o model.lpu", "run model.lpu"), long=long)


ENTRIES = {
    "generate, 1 chip": _generate("--tp 1"),
    "generate, 2 chips": _generate("--tp 2"),
    "generate, 8 chips": _generate("--tp 8"),
    "generate, 2 nodes": _generate("--tp 8 --pp 2"),
    "generate, 2 stages in a node": _generate("--tp 2 --pp 2"),
    "generate, fp16": _generate("--tp 2 --dtype fp16"),
    "generate, barrier": _generate("--tp 2 --sync barrier"),
    "generate, sampled": _generate("--tp 2 --temperature 0.8 --seed 5"),
    "generate, draft model": _generate("--tp 1 --model ./draft"),
    "generate, LP30": _generate("--tp 2 --chip groq-3-lp30"),
    "generate, a node dies": _generate("--tp 8 --pp 2", DEAD_NODE),
    "generate, noise": _generate("--tp 4", NOISE),
    "belt": Entry(("belt --tp 2 --pp 2 --max-new-tokens 4",)),
    "compile": Entry(("compile --tp 2 --model ./target -o model.lpu", "run model.lpu")),
    "compile, 2 nodes": Entry(
        ("compile --tp 8 --pp 2 --dtype fp16 --model ./target -o model.lpu", "run model.lpu")
    ),
    "assemble": Entry(
        (
            "assemble sender.asm receiver.asm -o pair.lpu --result mem_e[0-3]:8",
            "check pair.lpu",
            "run pair.lpu",
        ),
        {"sender.asm": SENDER, "receiver.asm": RECEIVER},
    ),
    "all-reduce, one-shot": _collective("--chips 8 --bytes 10240"),
    "all-reduce, int32": _collective("--chips 64 --bytes 81920"),
    "all-reduce, fp32": _collective("--chips 64 --bytes 81920 --dtype fp32"),
    "reduce-scatter": _collective("--chips 64 --bytes 81920 --op reduce-scatter"),
    "all-to-all": _collective("--chips 64 --bytes 81920 --op all-to-all"),
    "all-gather": _collective("--chips 64 --bytes 81920 --op all-gather", long=True),
    "broadcast": _collective("--chips 64 --bytes 81920 --op broadcast"),
    "all-reduce, a node dies": Entry(
        ("fabric collective --run --in-process --chips 72 --bytes 81920 --faults faults.toml",),
        {"faults.toml": DEAD_NODE_OF_A_RACK},
    ),
    "all-reduce, 264 chips": Entry(("fabric collective --chips 264",)),
    "all-reduce, 10,440 chips": Entry(("fabric collective --chips 10440",), long=True),
    "product, fp16": _product("matmul --m 40 --k 640 --n 330"),
    "product, int8 sums of 2 chips": _product(
        "matmul --m 40 --k 640 --n 330 --dtype int8 --chips 2 --split rows"
    ),
    "product over rows and columns of chips": _product(
        "matmul --m 40 --k 640 --n 330 --chips 6 --split rows:3,columns:2"
    ),
    "factorisation on 2 chips": _product("cholesky --n 40 --chips 2"),
    "product, of the paper": Entry(("workload matmul",)),
    "mlp": _product("mlp"),
    "ResNet-50, small image": _product("resnet50 --size 32"),
    "ResNet-50": Entry(("workload resnet50",), long=True),
    "BERT, 2 layers": _product("bert --layers 2 --chips 2 --tokens 16", long=True),
    "plan, SmolLM2 135M": Entry(("plan --model smollm2-135m",)),
    "plan, TinyLlama 1.1B": Entry(("plan --model tinyllama-1.1b",)),
    "experiment, speculative": Entry(
        ("experiment speculative --in-process --max-new-tokens 16",),
        figures=("texts", "steps", "acceptance", "draft_cycles", "virtual_seconds", "lossless"),
    ),
    "experiment, load": Entry(
        ("experiment load --requests 20",),
        figures=("ttft_s", "tpot_s", "pools.lpu.decode_cycles", "pools.gpu.mean_batch"),
    ),
    "experiment, disaggregated": Entry(
        ("experiment disaggregated --requests 20 --prompt-tokens 128 --output-tokens 64",),
        figures=("lpu_decode_cycles", "ttft_s", "tpot_s", "end_to_end_s"),
    ),
    "experiment, agentic": Entry(
        ("experiment agentic --requests 2",),
        figures=("lpu_decode_cycles", "ttft_s", "tpot_s", "end_to_end_s"),
    ),
}


def measure(entry: Entry, directory: Path) -> dict[str, Any]:
    """Run ``entry`` in ``directory``, an empty one: command or file -> what it gave.

    Raises GuardError when a command ends with another exit code than 0.
    """
    for model in ("target", "draft"):
        (directory / model).symlink_to(ROOT / "programs" / "checkpoints" / model)
    for name, text in entry.files.items():
        (directory / name).write_text(text, encoding="utf-8")
    with chdir(directory):
        found = {f"lpu {line}": _kept(_run(line), entry.figures) for line in entry.commands}
    files = {p.name: {"sha256": artifact_sha256(p.read_bytes())} for p in directory.glob("*.lpu")}
    return found | files


def _run(line: str) -> Any:
    """The JSON that ``lpu LINE --json`` prints, without what differs from run to run."""
    from cluster.cli import run

    printed, told = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(told):
        code = run([*line.split(), "--json"])
    if code:
        raise GuardError(f"lpu {line}: exit code {code}: {told.getvalue().strip()}")
    return repeatable(json.loads(printed.getvalue()))


def repeatable(value: Any) -> Any:
    """``value`` without the keys that differ from run to run, its floats rounded.

    A float that JSON has no word for is given as text.
    """
    if isinstance(value, dict):
        return {k: repeatable(v) for k, v in value.items() if k not in UNREPEATABLE}
    if isinstance(value, list):
        return [repeatable(v) for v in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)


def _kept(value: Any, figures: tuple[str, ...]) -> Any:
    if not figures:
        return value
    whole = json.dumps(value, sort_keys=True).encode()
    kept: dict[str, Any] = {"sha256": hashlib.sha256(whole).hexdigest()}
    for path in figures:
        kept[path] = value
        for key in path.split("."):
            kept[path] = kept[path][key]
    return kept


def artifact_sha256(data: bytes) -> str:
    """sha256 of an ``.lpu`` file's bytes, but for the directory its checkpoint lay in.

    The header, and the preamble's hash of it, hold that directory; the layout is in
    ``programs/artifact/file.py``.
    """
    preamble = struct.Struct("<4sIQ32s")
    magic, version, length, _ = preamble.unpack_from(data)
    body = preamble.size + length
    header = msgpack.unpackb(data[preamble.size : body], strict_map_key=False)
    if header["model"].get("checkpoint"):
        header["model"]["checkpoint"] = ""
    whole = hashlib.sha256(struct.pack("<4sI", magic, version))
    whole.update(msgpack.packb(header))
    whole.update(data[body:])
    return whole.hexdigest()


def recorded() -> dict[str, Any]:
    """Entry -> command or file -> what it gave when ``guard.json`` was last renewed, if ever."""
    text = FILE.read_text(encoding="utf-8") if FILE.exists() else "{}"
    found: dict[str, Any] = json.loads(text)
    return found


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """A line for each value that is not the same in both, or in one only."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            here = f"{where}: {key}" if where else str(key)
            if key not in after:
                yield f"{here}: no longer there, was {json.dumps(before[key])}"
            elif key not in before:
                yield f"{here}: new, {json.dumps(after[key])}"
            else:
                yield from differences(before[key], after[key], here)
    elif json.dumps(before) != json.dumps(after):  # 1 is not 1.0 in a document
        yield f"{where}: was {json.dumps(before)}, is {json.dumps(after)}"


def written(value: Any, indent: int = 0) -> str:
    """``value`` as JSON with one line for each value of an object, so that a diff can be read."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = " " * (indent + 1)
    lines = [f"{inner}{json.dumps(k)}: {written(v, indent + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"


def main() -> int:
    """Compare all entries, or those named; 1 if anything differs.

    With --renew write the file, unless a command fails.
    """
    about = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.guard", description=about)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="beginnings of their names")
    parser.add_argument("--renew", action="store_true", help="write the file anew")
    given = parser.parse_args()
    names = [n for n in ENTRIES if not given.entries or n.startswith(tuple(given.entries))]
    if not names:
        parser.error(f"the entries are {'; '.join(ENTRIES)}")
    before = recorded()
    after, failed = {}, {}
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        with TemporaryDirectory() as directory:
            try:
                after[name] = measure(ENTRIES[name], Path(directory))
            except GuardError as error:
                failed[name] = str(error)
    asked = before.keys() & set(names) if given.entries else before.keys()
    known = {name: value for name, value in before.items() if name in asked - failed.keys()}
    different = [f"{name}: {text}" for name, text in failed.items()]
    different += differences(known, after)
    print("\n".join(different or ["nothing differs"]))
    if failed or not given.renew:
        return int(bool(different))
    both = {name: (before | after)[name] for name in ENTRIES if name in before or name in after}
    FILE.write_text(written(both) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
