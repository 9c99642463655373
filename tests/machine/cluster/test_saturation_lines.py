"""``generate``, ``belt`` and ``run`` say what saturated, and end with 1 where that is forbidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run
from tests.stands.loud_model import LAYER, write_loud_model

NONE = {"fp16": 0, "int32": 0, "int8": 0, "layers": {}}
#: 1e6 on every lane becomes fp16, and is written.
CLIPPING = """\
0: alu[0] MOV s0=imm imm=1000000f
3: alu[1] CVT_F32_F16 s0=alu0 out=W0 wo=2 tag=1
11: mem_w[0-1] WRITE a=8 s0=W0 w0=1 dsg=1 want0=1
"""
QUIET = CLIPPING.replace("1000000f", "65504f")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loud_model(tmp_path_factory.mktemp("model") / "loud")


def ended(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = run([str(word) for word in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def figures(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code, out, _ = ended(capsys, *arguments, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)["saturations"]
    return found


GENERATE = ("generate", "--in-process", "--tp", "2", "--max-new-tokens", "3", "--ignore-eos")
BELT = ("belt", "--tp", "1", "--pp", "2", "--max-new-tokens", "2", "--prompt", "def ")


@pytest.mark.parametrize("verb", [GENERATE, BELT], ids=["generate", "belt"])
@pytest.mark.cases(1)
def test_texts_of_a_loud_model(
    capsys: pytest.CaptureFixture[str], loud: Path, verb: tuple[str, ...]
) -> None:
    found = figures(capsys, *verb, "--model", loud)
    layers = found.pop("layers")
    assert found["fp16"] > 0 and str(LAYER) in layers and "0" not in layers
    for kind, count in found.items():
        assert count == sum(own.get(kind, 0) for own in layers.values())
    code, out, err = ended(capsys, *verb, "--model", loud, "--strict-range")
    line = f"{found['fp16']:,} to fp16"
    assert code == 1 and "saturated" in out and line in out
    assert err.count("\n") == 1 and err.startswith("lpu: values saturated: ")
    assert line in err and f"first in layer {LAYER}" in err


@pytest.mark.parametrize("verb", [GENERATE, BELT], ids=["generate", "belt"])
@pytest.mark.cases(1)
def test_shipped_models_saturate_nothing(
    capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    assert figures(capsys, *verb, "--strict-range") == NONE
    code, out, _ = ended(capsys, *verb, "--dtype", "fp16", "--strict-range")
    assert code == 0 and "saturated" not in out


def test_a_program_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It has kinds, but no layers."""
    for name, text, count in (("loud", CLIPPING, 320), ("quiet", QUIET, 0)):
        source, file = tmp_path / f"{name}.asm", tmp_path / f"{name}.lpu"
        source.write_text(text, encoding="utf-8")
        assert run(["assemble", str(source), "-o", str(file)]) == 0
        capsys.readouterr()
        assert figures(capsys, "run", file) == {**NONE, "fp16": count}
        code, out, err = ended(capsys, "run", file, "--strict-range")
        assert (code, "320 to fp16" in out, "320 to fp16 (--strict" in err) == (
            (1, True, True) if count else (0, False, False)
        )


def test_a_network_saturates_by_definition(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The range of its int8 is the ReLU: no false alarm."""
    file = tmp_path / "mlp.lpu"
    assert run(["workload", "mlp", "-o", str(file)]) == 0
    capsys.readouterr()
    assert figures(capsys, "run", file, "--strict-range") == NONE
