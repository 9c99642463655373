"""The formats: real samples, how they are damaged, who reads them, and how a refusal looks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgpack

from chip.checker import check
from chip.encoding import AssemblyError, disassemble, read_assembly
from chip.errors import LpuError
from chip.program import Program, expanded_elements
from chip.spec import ChipSpec, SpecError, load_chip_spec
from cluster import cli
from cluster.commands.artifacts import MOST_ELEMENTS
from cluster.errors import InputError
from cluster.experiments.agentic import Rule
from cluster.experiments.agentic.messages import StepMessage, Tool, encode
from cluster.experiments.agentic.routing import LocalDesk
from cluster.experiments.serving import read_trace
from cluster.gpu import load_gpu_spec, load_link
from cluster.processes import one_file, open_carried
from cluster.report import page, pictures, read_run
from cluster.report.topology_picture import topology
from cluster.runs import check_artifact
from interconnect.wiring import FabricError, named_topology
from programs.artifact import ArtifactError, load, save
from programs.decoder import PartitionError, compile_decoder, deal_model, partition_model
from programs.decoder.compiler import CompileError
from programs.faults import FaultPlanError, load_fault_plan
from programs.models import (
    ModelConfig,
    config_of,
    load_checkpoint,
    portable_files,
    random_checkpoint,
    shipped_model,
)
from programs.models.generation import chat_template_of, end_tokens_of, special_tokens_of
from programs.models.tensors import CheckpointError
from tests.gguf_files import damage_gguf, read_all, write_sample

from .mutation import damage_bytes, damage_json, damage_toml, damage_value


@dataclass(frozen=True)
class Format:
    """read: takes the input and a scratch directory; refusals: how it may say no; few: inputs of a
    short run."""

    samples: Callable[[Path], Iterable[bytes]]
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes, Path], None]
    refusals: tuple[type[Exception], ...]
    few: int = 250


# --- .lpu -----------------------------------------------------------------------------------------

_PREAMBLE = struct.Struct("<4sIQ32s")


@cache
def _small_artifact() -> Any:
    config = ModelConfig(64, 1, 2, 1, 32, 96, 64, tied=True)
    return compile_decoder(partition_model(random_checkpoint(config, 0), 2), ChipSpec(), 64)


def _artifacts(directory: Path) -> list[bytes]:
    path = directory / "sample.lpu"
    save(_small_artifact(), path)
    return [path.read_bytes()]


def _signed(header: dict[str, Any], sections: list[bytes]) -> bytes:
    """A file whose hashes are right, whatever it holds."""
    header = {**header}
    if isinstance(header.get("sections"), list):
        entries = header["sections"]
        header["sections"] = [
            [len(data), hashlib.sha256(data).hexdigest()] if number < len(entries) else entry
            for number, (data, entry) in enumerate(zip(sections, entries, strict=False))
        ] + entries[len(sections) :]
    raw = msgpack.packb({key: header[key] for key in sorted(header, key=str)})
    return (
        _PREAMBLE.pack(b"LPU\0", 1, len(raw), hashlib.sha256(raw).digest())
        + raw
        + b"".join(sections)
    )


def _damage_artifact(data: bytes, rng: random.Random) -> bytes:
    """Damage that hashes show, or, more often, damage under hashes that are right."""
    if rng.random() < 0.2:
        return damage_bytes(data, rng)
    _, _, length, _ = _PREAMBLE.unpack(data[: _PREAMBLE.size])
    header = msgpack.unpackb(data[_PREAMBLE.size : _PREAMBLE.size + length])
    at, sections = _PREAMBLE.size + length, []
    for size, _ in header["sections"]:
        sections.append(data[at : at + size])
        at += size
    if rng.random() < 0.6:  # block tables, gangs, maps: the same sizes, other contents
        number = rng.randrange(len(sections))
        section = bytearray(sections[number])
        for _ in range(rng.choice((1, 1, 3, 20))):
            if section:
                place = rng.randrange(len(section))
                section[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        sections[number] = bytes(section)
    else:
        changed = damage_value(header, rng)
        header = changed if isinstance(changed, dict) else header
    with contextlib.suppress(ValueError, OverflowError, TypeError, UnicodeError):
        return _signed(header, sections)
    return damage_bytes(data, rng)


def _read_artifact(data: bytes, directory: Path) -> None:
    """What ``lpu check`` and ``lpu inspect`` do."""
    path = directory / "input.lpu"
    path.write_bytes(data)
    artifact = load(path)
    check_artifact(artifact, MOST_ELEMENTS)
    for programs in artifact.programs.values():
        for program in programs[:2]:
            part = Program(program.blocks[:20], program.gangs, program.maps, program.cycles)
            disassemble(part)


def _carrying_artifacts(directory: Path) -> list[bytes]:
    """One that carries a small GGUF file, one that carries a directory."""
    model = load_checkpoint(write_sample(directory / "sample.gguf", "gpt2"))
    found = []
    for files in (portable_files(model), _plain_files()):
        path = directory / "sample.lpu"
        save(replace(_small_artifact(), programs={}, files=files), path)
        found.append(path.read_bytes())
    return found


def _plain_files() -> dict[str, Any]:
    """Of the shipped draft, the texts and the header of its weights."""
    files = portable_files(load_checkpoint(shipped_model("draft")))
    return {name: (size, parts[:1]) for name, (size, parts) in files.items()}


def _read_carrying(data: bytes, directory: Path) -> None:
    """What ``lpu generate --artifact`` does before it runs anything."""
    path = directory / "input.lpu"
    path.write_bytes(data)
    artifact = load(path)
    if not artifact.files:
        return
    try:
        _, checkpoint = open_carried(artifact)
        if len(checkpoint.tokenizer.encode("ab a").ids):
            checkpoint.embedding_row(0)
        assert all(token >= 0 for token in checkpoint.end_tokens), checkpoint.special_tokens
    finally:
        one_file.forget_unpacked()


# --- checkpoints ----------------------------------------------------------------------------------


def _configs(_: Path) -> list[bytes]:
    return [(shipped_model("draft") / "config.json").read_bytes()]


def _checkpoint_home(directory: Path) -> Path:
    home = directory / "checkpoint"
    if not home.is_dir():
        shutil.copytree(shipped_model("draft"), home)
    return home


def _read_config(data: bytes, directory: Path) -> None:
    home = _checkpoint_home(directory)
    (home / "config.json").write_bytes(data)
    load_checkpoint(home)


def _tensors(_: Path) -> list[bytes]:
    return [(shipped_model("draft") / "model.safetensors").read_bytes()]


def _damage_tensors(data: bytes, rng: random.Random) -> bytes:
    """The header damaged as JSON with its length put right, or all of it as bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.25:
        return damage_bytes(data[: 8 + length], rng) + data[8 + length :]
    header = damage_json(data[8 : 8 + length], rng)
    size = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return size.to_bytes(8, "little") + header + data[8 + length :]


def _read_tensors(data: bytes, directory: Path) -> None:
    home = _checkpoint_home(directory)
    (home / "model.safetensors").write_bytes(data)
    partition_model(load_checkpoint(home), 2, "int8").embedding(0)


def _shapes(_: Path) -> list[bytes]:
    small = json.loads(_configs(_)[0])
    large = {
        **small,
        "hidden_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
    return [json.dumps(config).encode() for config in (small, large)]


def _read_shape(data: bytes, directory: Path) -> None:
    """What ``lpu plan`` does with a config before it compiles for the chips it found."""
    path = directory / "config.json"
    path.write_bytes(data)
    name, config = config_of(str(path))
    deal_model(name, config, ChipSpec(), "int8", min(4096, config.max_position), 1)


def _tokenizers(_: Path) -> list[bytes]:
    return [(shipped_model("draft") / "tokenizer.json").read_bytes()]


def _read_tokenizer(data: bytes, directory: Path) -> None:
    home = _checkpoint_home(directory)
    (home / "tokenizer.json").write_bytes(data)
    tokenizer = load_checkpoint(home).tokenizer
    tokenizer.decode(tokenizer.encode("def f(x):").ids)


def _gguf_files(directory: Path) -> list[bytes]:
    paths = [directory / f"sample-{kind}.gguf" for kind in ("gpt2", "llama")]
    for path in paths:
        write_sample(path, path.stem.removeprefix("sample-"))
    return [path.read_bytes() for path in paths]


def _chats(_: Path) -> list[bytes]:
    """tokenizer_config.json and generation_config.json as one."""
    named = [{"name": "default", "template": "{{ messages }}"}, {"name": "rag", "template": ""}]
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "eos_token_id": [2, 45]}
    return [json.dumps({**tokens, "chat_template": t}).encode() for t in ("{{ a }}", named)]


def _read_chat(data: bytes, directory: Path) -> None:
    (directory / "tokenizer_config.json").write_bytes(data)
    (directory / "generation_config.json").write_bytes(data)
    chat_template_of(directory)
    special_tokens_of(directory)
    end_tokens_of(directory)


# --- saved runs -----------------------------------------------------------------------------------


def _runs(directory: Path) -> list[bytes]:
    """A launch of a model, and a collective."""
    artifact, paths = directory / "sample.lpu", [directory / f"run-{n}.json" for n in range(2)]
    save(_small_artifact(), artifact)
    commands = (
        ["run", str(artifact)],
        ["fabric", "collective", "--run", "--in-process", "--chips", "2", "--bytes", "2560"],
    )
    for command, path in zip(commands, paths, strict=True):
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.run([*command, "--save", str(path)]) == 0
    return [path.read_bytes() for path in paths]


def _once(draw: Callable[..., Any]) -> Callable[..., Any]:
    """A picture is drawn once of each section: damage leaves most of them as they were."""
    drawn = lru_cache(64)(lambda section: draw(*json.loads(section)))
    return lambda *section: drawn(json.dumps(section))


_PICTURES = {
    name: _once(getattr(pictures, name))
    for name in ("bars", "latencies", "links", "roofline", "sram", "utilisation")
}
_TOPOLOGY = _once(topology)


def _read_run(data: bytes, directory: Path) -> None:
    """What ``lpu report`` does."""
    path = directory / "input.json"
    path.write_bytes(data)
    with patch.multiple(pictures, **_PICTURES), patch.object(page, "topology", _TOPOLOGY):
        page.write_page(read_run(path), directory / "page.html")


# --- tables ---------------------------------------------------------------------------------------

_CHIP_TOML = b"""[chip]
name = "faster-links"
hop_cycles = 400
clock_hz = 1_000_000_000
words_per_bank = 8192
pcie_latency_s = 1e-5
reserved_slices_east = [0, 1, 2, 3]
"""
_GPU_TOML = b"""[gpu]
base = "a100"
name = "faster"
hbm_bytes_per_s = 2e12
fp16_flops = 5e14
"""
_LINK_TOML = b"""[link]
base = "400gbe"
latency_s = 1e-5
bytes_per_s = 5e10
achieved_ratio = 0.8
"""
_TOPOLOGY_TOML = b"""name = "ring"
chips = 4
cables = [
  [0, 0, 1, 1],
  [1, 0, 2, 1],
  [2, 0, 3, 1],
  [3, 0, 0, 1],
]
"""
_FAULTS_TOML = b"""seed = 7
[links]
bit_error_rate = 1e-9
spare_after = 4
[[links.cable]]
cable = 3
bit_error_rate = 1e-3
from_launch = 2
[sram]
bit_error_rate = 1e-12
[[sram.upset]]
chip = 0
launch = 4
bits = 2
[clocks]
ppm = 50
deskew_interval_cycles = 1000
budget_cycles = 3
[spares]
nodes = 2
[[dead_node]]
node = 0
launch = 5
cycle = 4000
"""


def _file(suffix: str, reader: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    def read(data: bytes, directory: Path) -> None:
        path = directory / f"input{suffix}"
        path.write_bytes(data)
        reader(path)

    return read


def _topologies(_: Path) -> list[bytes]:
    cables = [[a, b, b, a] for a in range(3) for b in range(a + 1, 4)]
    return [json.dumps({"chips": 4, "cables": cables, "name": "mesh"}).encode()]


# --- text -----------------------------------------------------------------------------------------


def _assembly(_: Path) -> list[bytes]:
    artifact = _small_artifact()
    program = artifact.program(next(iter(artifact.programs)), 0)
    parts = [
        Program(program.blocks[first : first + 40], program.gangs, program.maps, program.cycles)
        for first in (0, 100)
    ]
    data = (
        ".data mem_e[0-3]:8 f32 1.5 -2e3 0x7fc00000 7*300 x9\n"
        ".data mem_w[0-15]:20 i8 -7..7 0xff x320\n1: mem_w[0] READ out=E0 wo=1\n"
    )
    return [data.encode(), *(disassemble(part).encode() for part in parts)]


def _damage_assembly(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damage_bytes(data, rng)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    words = lines[at].split(b" ")
    where = rng.randrange(len(words))
    name, equals, _ = words[where].partition(b"=")
    value = str(rng.choice([*range(-2, 9), 2**31, 2**63, 10**30])).encode()
    words[where] = name + equals + value if equals else value
    lines[at] = b" ".join(words)
    return b"\n".join(lines)


def _read_assembly(data: bytes, _: Path) -> None:
    program = read_assembly(data.decode("utf-8", "replace")).program
    if expanded_elements(program) <= MOST_ELEMENTS:
        check(program, ChipSpec())


def _traces(_: Path) -> list[bytes]:
    rows = [f"2023-11-16 18:15:{46 + n:02}.6805900,{374 + n},{44 - n}" for n in range(12)]
    return ["\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows, ""]).encode()]


def _messages(_: Path) -> list[bytes]:
    return [
        encode(StepMessage(0, 1, "reason", (0,), prompt="a task", max_new_tokens=24)),
        encode(StepMessage(0, 2, "call_tool", (1,), tool=Tool("search", "x"))),
    ]


@cache
def _desk() -> LocalDesk:
    return LocalDesk(Rule())


def _read_message(data: bytes, _: Path) -> None:
    _desk().route(data, {"lpu": 0, "gpu": 0})


FORMATS: dict[str, Format] = {
    "lpu": Format(_artifacts, _damage_artifact, _read_artifact, (ArtifactError, InputError)),
    "config": Format(_configs, damage_json, _read_config, (CheckpointError,)),
    "safetensors": Format(_tensors, _damage_tensors, _read_tensors, (CheckpointError,)),
    "shape-json": Format(
        _shapes, damage_json, _read_shape, (CheckpointError, CompileError, PartitionError), 40
    ),
    "tokenizer": Format(_tokenizers, damage_json, _read_tokenizer, (CheckpointError,)),
    "lpu-model": Format(_carrying_artifacts, _damage_artifact, _read_carrying, (LpuError,), 400),
    "gguf": Format(_gguf_files, damage_gguf, read_all, (CheckpointError,), 5000),
    "tokenizer-config": Format(_chats, damage_json, _read_chat, (CheckpointError,)),
    "run-json": Format(_runs, damage_json, _read_run, (InputError,), 30),
    "chip-toml": Format(
        lambda _: [_CHIP_TOML], damage_toml, _file(".toml", load_chip_spec), (SpecError,)
    ),
    "gpu-toml": Format(
        lambda _: [_GPU_TOML], damage_toml, _file(".toml", load_gpu_spec), (InputError,)
    ),
    "link-toml": Format(
        lambda _: [_LINK_TOML], damage_toml, _file(".toml", load_link), (InputError,)
    ),
    "topology-toml": Format(
        lambda _: [_TOPOLOGY_TOML], damage_toml, _file(".toml", named_topology), (FabricError,)
    ),
    "topology-json": Format(
        _topologies, damage_json, _file(".json", named_topology), (FabricError,)
    ),
    "faults-toml": Format(
        lambda _: [_FAULTS_TOML], damage_toml, _file(".toml", load_fault_plan), (FaultPlanError,)
    ),
    "assembly": Format(_assembly, _damage_assembly, _read_assembly, (AssemblyError,)),
    "trace-csv": Format(_traces, damage_bytes, _file(".csv", read_trace), (InputError,)),
    "agent-json": Format(_messages, damage_json, _read_message, ()),
}
