"""``import lpu``: light, complete, and the same answers as the command and as models by hand."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import lpu
from cluster.cli import app
from programs.decoder import GoldenDecoder, partition_model
from programs.models import open_model

SOURCE = Path(lpu.__file__)
PROMPT, NEW_TOKENS = "def f(x)", 4
#: A copy of one word through the VXM.
COPY = """
.cycles 20
0: mem_e[0] READ a=7 out=W0 wo=1 tag=1
2: alu[0] MOV s0=W0 w0=1 want0=1 out=E0 wo=1 tag=2
10: mem_e[0] WRITE a=8 s0=E0 w0=1 want0=2
"""


@pytest.fixture(scope="module")
def model() -> lpu.CompiledModel:
    return lpu.compile("draft", chips=2, context=64)


@pytest.fixture(scope="module")
def run(model: lpu.CompiledModel) -> lpu.Generated:
    return model.generate(PROMPT, NEW_TOKENS)


def test_importing_loads_nothing() -> None:
    code = (
        "import lpu, sys; heavy = ('numpy', 'numba', 'ray', 'typer', 'cluster', 'chip'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == "[]"


def test_type_checkers_see_the_names_that_are_there() -> None:
    """What ``__getattr__`` finds is what the imports for type checkers say."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    told = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert lpu.__all__ == sorted(told) == dir(lpu)
    for name, home in told.items():
        module, _, there = home.partition(":")
        __import__(module)
        assert getattr(lpu, name) is getattr(sys.modules[module], there), name


def test_run_is_that_of_the_command(run: lpu.Generated) -> None:
    line = ["generate", "--in-process", "--model", "draft", "--chips", "2", "--context", "64"]
    line += ["--prompt", PROMPT, "--max-new-tokens", str(NEW_TOKENS), "--json"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (run.tokens, run.text) == (told["tokens"], told["text"])
    assert (run.cycles, run.digest) == (told["cycles_per_token"], told["digest"])
    assert run.virtual_seconds == told["virtual_seconds"]


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
@pytest.mark.long
def test_actors_give_the_same_digest_and_keep_their_chips(
    model: lpu.CompiledModel, run: lpu.Generated
) -> None:
    there = model.generate(PROMPT, NEW_TOKENS, chips_per_actor=1)
    assert there.result.actors == 2 and run.result.actors == 0
    assert (there.tokens, there.cycles, there.digest) == (run.tokens, run.cycles, run.digest)
    with pytest.raises(lpu.LpuError, match="were in other processes; generate without actors"):
        _ = there.chips


def test_sram_holds_the_logits_of_the_golden_model(
    model: lpu.CompiledModel, run: lpu.Generated
) -> None:
    """Float32 as byte planes in four slices, each chip with its share of the vocabulary."""
    weights = partition_model(open_model("draft"), 2)
    fed = [*run.prompt, *run.tokens[:-1]]
    wanted = GoldenDecoder(weights).logits_for(fed, 64)[-1]
    planes = model.artifact.bindings["outputs"]["logits"]
    found = []
    for local, chip in enumerate(run.chips):
        rows = [chip.sram[slice_, first : first + words] for slice_, first, words in planes]
        bits = sum(row.astype(np.uint32) << (8 * byte) for byte, row in enumerate(rows))
        values = np.asarray(bits, np.uint32).view(np.float32)
        found.append(values[weights.layout.vocab_axis(local) >= 0])
    assert np.array_equal(np.concatenate(found), wanted)
    assert run.tokens[-1] == int(wanted.argmax())


def test_saved_model_runs_the_same(
    model: lpu.CompiledModel, run: lpu.Generated, tmp_path: Path
) -> None:
    model.save(tmp_path / "draft.lpu")
    again = lpu.load(tmp_path / "draft.lpu")
    assert (again.chips, again.context) == (2, 64)
    assert again.predicted_cycles == model.predicted_cycles
    assert again.generate(PROMPT, NEW_TOKENS).digest == run.digest


def test_streams_by_hand() -> None:
    """A Read drives one cycle after its dispatch and moves a position a cycle.

    Slice 0 of the east is at position 25, the VXM samples westward streams at 24 and drives
    eastward ones there, four and three cycles after its dispatch; the edge is at 45.
    """
    memory = [(44, 7, np.full((1, 320), 5, np.uint8))]
    program = lpu.assemble(COPY)

    def seen(stream: str, at: str | int) -> list[int]:
        looks = (
            lpu.look(program, stream=stream, at=at, cycle=cycle, memory=memory)
            for cycle in range(40)
        )
        found = {cycle: vector for cycle, vector in enumerate(looks) if vector is not None}
        assert all((vector == 5).all() and vector.shape == (320,) for vector in found.values())
        return list(found)

    assert seen("W0", "vxm") == [0 + 1 + (25 - 24)]
    assert seen("W0", 25) == []  # a unit never sees what its own position drives
    assert seen("W0", -1) == [0 + 1 + (25 - -1)]
    assert seen("E0", "mem_e[0]") == [2 + 4 + 3 + (25 - 24)]
    assert seen("E0", 45) == [2 + 4 + 3 + (45 - 24)]  # after the launch's last instruction
    assert seen("E1", "vxm") == []


def test_stepping_a_reference_chip_changes_nothing() -> None:
    program = lpu.assemble(COPY)
    alone, stepped = lpu.ReferenceChip(lpu.ChipSpec()), lpu.ReferenceChip(lpu.ChipSpec())
    alone.sram[44, 7] = stepped.sram[44, 7] = np.arange(320) % 251
    whole = alone.run(program)
    stepped.begin(program)
    for cycle in (1, 4, 4, 11, 12):
        stepped.run_to(cycle)
        # Written by the WRITE of cycle 10, readable from the start of cycle 12 on.
        assert (stepped.stream(32, 19) is not None) == (cycle == 7)
    assert not stepped.sram[44, 8].any()
    stepped.run_to(13)
    assert np.array_equal(stepped.sram[44, 8], stepped.sram[44, 7])
    assert stepped.finish() == whole
    with pytest.raises(lpu.LpuError, match="cycle 5 is over; begin the launch again"):
        stepped.run_to(5)


def test_plans_are_rows_and_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = lpu.plan("draft", sweep="context=64..128", run=False)
    one = lpu.plan("draft", context=128, run=False)
    line = ["plan", "--model", "draft", "--context", "128", "--no-run", "--json"]
    told = json.loads(CliRunner().invoke(app, line).stdout)
    for row in (told, *(rows := one.rows())):
        del row["wall_seconds"]
    assert rows == [told]
    assert one.cycles_per_token == told["cycles_per_token"] == table.rows()[1]["cycles_per_token"]
    assert "phases" in dir(one) and "phases" not in dir(table)
    assert [row["context"] for row in table + one] == [64, 128, 128] and len(table) == 2
    assert repr(one).startswith("<plan: model draft, chips 1, context 128, batch 1, cycles_per_")
    one.rows()[0]["phases"].clear()
    assert one.phases == told["phases"]
    with pytest.raises(AttributeError, match="the table has 2 plans; use rows"):
        _ = table.cycles_per_token
    with pytest.raises(AttributeError, match="a plan has no tokens; use batch, bottleneck"):
        _ = one.tokens

    taken = SimpleNamespace(json_normalize=lambda rows: ("a frame", rows))
    monkeypatch.setitem(sys.modules, "pandas", taken)
    assert table.frame() == ("a frame", table.rows())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="a frame needs pandas: pip install pandas") as refused:
        table.frame()
    assert isinstance(refused.value, lpu.LpuError)


def test_a_changed_field_of_the_chip_changes_the_plan() -> None:
    """Hops twice as fast: each of a token's exchanges is shorter, nothing else is longer."""
    usual, nearer = (
        lpu.plan("draft", chips=2, context=64, changes={"hop_cycles": hop}, run=False)
        for hop in (lpu.ChipSpec().hop_cycles, 400)
    )
    assert nearer.phases["c2c"] < usual.phases["c2c"]
    assert nearer.phases["attention"] == usual.phases["attention"]


def test_wiring_is_that_of_its_cables() -> None:
    ring = lpu.wired_topology(3, [(0, 0, 1, 1), (1, 0, 2, 1), (0, 1, 2, 0)], name="ring")
    assert ring.name == "ring" and ring.chips == 3
    assert ring.cables.tolist() == [[0, 0, 1, 1], [0, 1, 2, 0], [1, 0, 2, 1]]
    assert ring.peer[0, :2].tolist() == [1, 2] and ring.peer_link[0, :2].tolist() == [1, 0]


REFUSED: dict[str, Callable[[], object]] = {
    "model 'nobody' does not exist": lambda: lpu.compile("nobody"),
    "--dtype int4: use int8 or fp16": lambda: lpu.compile("draft", dtype="int4"),
    "3 chips (--tp) would share every matrix; use 1, 2, 4 or 8": lambda: lpu.compile(chips=3),
    "cannot be read: No such file": lambda: lpu.load("/nowhere.lpu"),
    "--set chip.colour=1: use chip.FIELD=VALUE": lambda: lpu.plan("draft", changes={"colour": 1}),
    "cable 0 is [0, 0, 1]; use [chip a": lambda: lpu.wired_topology(2, [(0, 0, 1)]),
    "collective 'sum': known are": lambda: lpu.plan_collective(
        lpu.topology_of(8), "sum", 4, lpu.ChipSpec()
    ),
    "stream 'E32' does not exist; use E0..E31": lambda: lpu.look(
        lpu.assemble(COPY), stream="E32", at="vxm", cycle=0
    ),
    "at 'mem': no such unit; use vxm": lambda: lpu.look(
        lpu.assemble(COPY), stream="E0", at="mem", cycle=0
    ),
    "position 46 does not exist; use -1..45": lambda: lpu.look(
        lpu.assemble(COPY), stream="E0", at=46, cycle=0
    ),
    "cycle -1: a launch begins at cycle 0": lambda: lpu.look(
        lpu.assemble(COPY), stream="E0", at=0, cycle=-1
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_are_one_line(words: str) -> None:
    with pytest.raises(lpu.LpuError) as refused:
        REFUSED[words]()
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_what_a_model_refuses(model: lpu.CompiledModel) -> None:
    for ask, words in (
        (lambda: model.generate("def ", 100), "but the artifact was compiled for 64; shorten"),
        (lambda: model.generate("", 1), "prompt is empty"),
        (lambda: model.generate(chips_per_actor=3), "--chips-per-actor 3: use 1, 2, 4, 8 or auto"),
        (lambda: model.generate(address="auto"), "where actors run: say actors=True as well"),
    ):
        with pytest.raises(lpu.LpuError) as refused:
            ask()
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_what_a_reference_chip_and_the_face_refuse() -> None:
    chip = lpu.ReferenceChip(lpu.ChipSpec())
    chip.begin(lpu.assemble(COPY))
    with pytest.raises(lpu.LpuError, match=r"stream 64 does not exist; use 0\.\.63"):
        chip.stream(64, 0)
    with pytest.raises(AttributeError, match="lpu has no nothing; it has AgenticSettings, Alu"):
        _ = lpu.nothing
