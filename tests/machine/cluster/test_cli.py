"""What ``lpu`` says and returns: one object on stdout, one line on stderr, exit codes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from chip.spec import ChipSpec
from programs.models import read_config, shipped_model
from programs.plans import floor_of


def lpu(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def refused(*arguments: str | Path) -> str:
    """The one line on stderr of a command that must exit with code 2 and print nothing."""
    done = lpu(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("lpu: ")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "--chips", "3"), ("--chips 3", "1, 2, 4 or 8")),
        (("generate", "--dtype", "int4"), ("--dtype int4", "int8 or fp16")),
        (("generate", "--sync", "never"), ("--sync never", "lookahead or barrier")),
        (("generate", "--pp", "2", "--chips", "8", "--tp", "8"), ("2 pipeline", "--chips 16")),
        (("generate", "--tp", "3"), ("3 chips", "1, 2, 4 or 8")),
        (("generate", "--chips-per-actor", "3"), ("--chips-per-actor 3", "auto")),
        (("generate", "--max-new-tokens", "0"), ("--max-new-tokens 0",)),
        (("generate", "--max-new-tokens", "many"), ("--max-new-tokens",)),
        (("generate", "--max-new-tokens", "100000"), ("512", "--max-new-tokens")),
        (("generate", "--temperature", "-1"), ("--temperature",)),
        (("generate", "--prompt", ""), ("--prompt is empty",)),
        (("generate", "--chip", "groq-lpu-9"), ("groq-lpu-9", "groq-lpu-1")),
        (("generate", "--model", "/no/such/model"), ("/no/such/model", "does not exist")),
        (("generate", "--address", "ray://far:10001", "--max-new-tokens", "1"), ("ray://far",)),
        (("generate", "--colour"), ("--colour",)),
        (("check", "/no/such/file.lpu"), ("/no/such/file.lpu",)),
        (("bench", "fastest"), ("fastest", "decode_vs_numpy")),
        (("dance",), ("dance",)),
    ],
)
@pytest.mark.cases(4)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    line = refused(*arguments)
    for word in words:
        assert word in line


@pytest.mark.long
def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    shutil.copytree(shipped_model(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert "model.safetensors" in refused("generate", "--model", tmp_path / "model")
    weights.write_bytes(b"short")
    assert "model.safetensors" in refused("generate", "--model", tmp_path / "model")


def test_model_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    """The config of a 7B model: refused for its size, without weights of that size."""
    tensor_bytes = write_empty_model(tmp_path, hidden=4096, layers=32, heads=32, ffn=11008)
    assert tensor_bytes > 10**10
    line = refused("generate", "--model", tmp_path, "--chips", "1")
    assert "SRAM" in line or "fit" in line or "slices" in line


def write_empty_model(directory: Path, *, hidden: int, layers: int, heads: int, ffn: int) -> int:
    """A checkpoint whose safetensors file is one large hole; its size in bytes."""
    from programs.models import ModelConfig
    from programs.models.checkpoint import tensor_shapes

    config = ModelConfig(hidden, layers, heads, heads, hidden // heads, ffn, vocab=32000)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": 32000,
        "num_key_value_heads": heads,
    }
    (directory / "config.json").write_text(json.dumps(fields))
    shutil.copy(shipped_model() / "tokenizer.json", directory)
    header, at = {}, 0
    for name, shape in tensor_shapes(config).items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


@pytest.mark.long
def test_compile_check_inspect_run(tmp_path: Path) -> None:
    file = tmp_path / "model.lpu"
    made = json.loads(
        lpu("compile", "--chips", "2", "--context", "64", "-o", file, "--json").stdout
    )
    assert made["artifact"] == str(file) and made["chips"] == 2
    assert set(made["predicted_cycles"]) == {"decode-64", "prefill-64"}
    assert 0 < made["sram_used_bytes"] < made["sram_bytes"]

    verdict = lpu("check", file, "--json")
    assert verdict.returncode == 0
    assert json.loads(verdict.stdout) == {"legal": True, "findings": []}

    shown = json.loads(lpu("inspect", file, "--chip", "1", "--limit", "3", "--json").stdout)
    assert shown["entry"] == "decode-64" and shown["blocks"] > 100
    assert len([line for line in shown["assembly"].splitlines() if line[0].isdigit()]) == 3
    assert "chips 0 to 1" in refused("inspect", file, "--chip", "2")

    ran = [json.loads(lpu("run", file, "--json").stdout) for _ in range(2)]
    assert ran[0] == ran[1]
    assert ran[0]["cycles"] == made["predicted_cycles"]["decode-64"]
    assert len(ran[0]["outputs"]) == 2

    bytes_ = bytearray(file.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    file.write_bytes(bytes_)
    assert "damaged" in refused("check", file)


def test_generate_in_one_process_prints_one_object(tmp_path: Path) -> None:
    common = ("generate", "--in-process", "--chips", "2", "--max-new-tokens", "3", "--json")
    done = lpu(*common)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and done.stderr == ""
    result = json.loads(done.stdout)
    assert len(result["tokens"]) == len(result["cycles_per_token"]) == 3
    assert result["cycles_per_token"] == result["predicted_cycles_per_token"]
    assert result["chips"] == 2 and result["actors"] == 0
    config = read_config(shipped_model())
    # A prompt of two tokens and three new ones: the last is computed at four positions.
    asked = {"tp": 2, "stages": 1, "dtype": "int8", "context": 4}
    assert result["prompt_tokens"] == 2
    assert result["floor_cycles"] == floor_of(config, ChipSpec(), **asked).cycles
    # A model at another place is the same model.
    shutil.copytree(shipped_model(), tmp_path / "elsewhere")
    moved = json.loads(lpu(*common, "--model", tmp_path / "elsewhere").stdout)
    assert moved["digest"] == result["digest"]


@pytest.mark.long
def test_sampling_follows_its_seed() -> None:
    def tokens(seed: int) -> list[int]:
        done = lpu(
            "generate",
            "--in-process",
            "--chips",
            "1",
            "--max-new-tokens",
            "6",
            "--json",
            "--temperature",
            "2",
            "--seed",
            str(seed),
        )
        return list(json.loads(done.stdout)["tokens"])

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
