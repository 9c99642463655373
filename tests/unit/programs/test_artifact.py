"""The .lpu file: exact round trip, one-line errors for any other file, bounded memory."""

from __future__ import annotations

import copy
import hashlib
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from chip.encoding.assembly import assemble
from chip.isa import Op
from chip.program import BLOCK_DTYPE, Program, new_blocks
from chip.spec import PRESETS, ChipSpec
from programs.artifact import Artifact, ArtifactError, content_hash, load, save
from programs.artifact import file as artifact_module

PREAMBLE = struct.Struct("<4sIQ32s")
MIB = 2**20


def sample(chips: int = 2) -> Artifact:
    """A small artifact that uses everything."""
    rng = np.random.default_rng(7)
    first = assemble(
        """.cycles 900
        .gang 0 mem_e[3]
        .map 0 16-31,0-15,32-319
        5: mem_w[0-3,7] READ a=1 out=E4 wo=1 dsg=1 x8/1/2 x4/320/8
        9: alu[5] MUL_F32 s0=E4 w0=4 s1=imm imm=1.5f
        20: sxm_e.permutor PERMUTE s0=E4 w0=1 out=W0 wo=1
        """
    )
    second = assemble(".cycles 900\n5: mem_w[0] WRITE a=1 s0=W4 w0=1 x8/1/1")
    shared = rng.integers(0, 256, (40, 320), np.uint8)
    own = rng.integers(0, 256, (3, 320), np.uint8)
    return Artifact(
        spec=replace(ChipSpec(), name="what-if \N{GREEK SMALL LETTER MU}", hop_cycles=700),
        topology="single" if chips == 1 else f"node-{chips}",
        chips=chips,
        cables=[(0, 1, 1, 0)] if chips > 1 else [],
        programs={"prefill": [first, second], "decode": [second, first]},
        program_of_chip=[0, 1, 1, 1, 0, 0, 0, 0][:chips],
        memory=[[(0, 0, shared), (87, 8189, own + chip)] for chip in range(chips)],
        bindings={"decode": {"inputs": {"token": [[3, 17, 1]]}, "scale": 0.5, "on": True}},
        model={"name": "tiny", "layers": 2, "nothing": None, "text": "\u2028\n\t", "big": 2**62},
        predicted_cycles={"prefill": 900, "decode": 900},
        files={
            "tiny/config.json": (3, ((0, np.frombuffer(b"{}\n", np.uint8)),)),
            "tiny/weights": (5000, ((8, own[0]), (4000, own[1, :5]))),
            "tiny/empty \N{GREEK SMALL LETTER MU}": (0, ()),
        },
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The sample, saved."""
    path = tmp_path / "a.lpu"
    save(sample(), path)
    return path


def assert_same(a: Artifact, b: Artifact) -> None:
    """Equal in every field."""
    plain = ("topology", "chips", "cables", "program_of_chip", "bindings", "model")
    for name in (*plain, "spec", "predicted_cycles"):
        assert getattr(a, name) == getattr(b, name), name
    assert set(a.programs) == set(b.programs)
    for name in a.programs:
        for p, q in zip(a.programs[name], b.programs[name], strict=True):
            assert q.blocks.dtype == BLOCK_DTYPE
            assert p.blocks.tobytes() == q.blocks.tobytes()
            assert p.gangs == q.gangs and p.cycles == q.cycles
            assert [m.tolist() for m in p.maps] == [m.tolist() for m in q.maps]
    for mine, other in zip(a.memory, b.memory, strict=True):
        assert [x[:2] for x in mine] == [x[:2] for x in other]
        assert all(np.array_equal(x[2], y[2]) for x, y in zip(mine, other, strict=True))
    assert set(a.files) == set(b.files)
    for name, (size, parts) in a.files.items():
        assert size == b.files[name][0]
        assert [at for at, _ in parts] == [at for at, _ in b.files[name][1]]
        for (_, mine), (_, other) in zip(parts, b.files[name][1], strict=True):
            assert np.array_equal(mine, other)


def error_of(path: Path) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(ArtifactError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "; " in message
    assert message.isprintable() and len(message) < 700, message
    return message


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any], body: bytes = b"") -> None:
    """Change the header of ``path`` and make its hash fit again."""
    raw = path.read_bytes()
    length = PREAMBLE.unpack_from(raw)[2]
    header = msgpack.unpackb(raw[PREAMBLE.size : PREAMBLE.size + length])
    change(header)
    packed = msgpack.packb(_sorted(header))
    body = body or raw[PREAMBLE.size + length :]
    start = PREAMBLE.pack(b"LPU\0", 1, len(packed), hashlib.sha256(packed).digest())
    path.write_bytes(start + packed + body)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("chips", [1, 2, 4, 8])
def test_round_trip(tmp_path: Path, chips: int) -> None:
    original = sample(chips)
    path = tmp_path / "a.lpu"
    save(original, path)
    loaded = load(path)
    assert_same(original, loaded)
    assert content_hash(loaded) == content_hash(original)
    assert PREAMBLE.unpack_from(path.read_bytes())[3].hex() == content_hash(original)
    again = tmp_path / "b.lpu"
    save(loaded, again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.lpu", "b.lpu"]


def test_equal_data_are_stored_and_loaded_once(file: Path) -> None:
    loaded = load(file)
    assert loaded.memory[0][0][2] is loaded.memory[1][0][2]
    assert loaded.programs["prefill"][0] is loaded.programs["decode"][1]
    assert loaded.program("prefill", 1) is loaded.programs["prefill"][1]
    assert not loaded.memory[0][0][2].flags.writeable
    copied = sample()
    copied.memory = [[(s, a, rows.copy()) for s, a, rows in chip] for chip in copied.memory]
    assert content_hash(copied) == content_hash(loaded)
    assert file.stat().st_size < 40 * 320 + 2 * 3 * 320 + 6000


def test_the_hash_depends_on_content_only() -> None:
    a, b = sample(), sample()
    b.programs = dict(reversed(b.programs.items()))
    b.model = dict(reversed(b.model.items()))
    b.memory = [[(np.int64(s), np.int32(x), r[::1]) for s, x, r in c] for c in b.memory]  # type: ignore[misc]
    assert content_hash(a) == content_hash(b)
    changed = [sample() for _ in range(5)]
    changed[0].model["layers"] = 3
    changed[1].memory[1][1][2][2, 319] ^= 1
    changed[2].programs["decode"][0].blocks["tag"][0] = 1
    changed[3].spec = ChipSpec()
    changed[4].programs["decode"][1].maps[0][:2] = [1, 0]
    assert len({content_hash(x) for x in (a, *changed)}) == 6


def test_empty_artifact(tmp_path: Path) -> None:
    path = tmp_path / "a.lpu"
    empty = Artifact(ChipSpec(), "single", 1, program_of_chip=[0], memory=[[]])
    save(empty, path)
    assert_same(empty, load(path))
    empty.programs = {"go": [Program(new_blocks(0))]}
    save(empty, path)
    assert_same(empty, load(path))


def test_truncated_files(file: Path) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for size in (*range(60), *rng.integers(60, len(whole), 90), len(whole) - 1):
        file.write_bytes(whole[:size])
        error_of(file)
    file.write_bytes(whole + b"\0")
    assert "bytes where" in error_of(file)


def test_flipped_bits(file: Path) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    for at in (*range(48), *rng.integers(0, 4000, 100), *rng.integers(0, len(whole), 60)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        error_of(file)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.lpu"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights", "x" * 1000)
    assert "is no .lpu file" in error_of(path)
    for content in (
        b"",
        b"L",
        b"LPU",
        b"LPU\0",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"#!/bin/sh\necho\n",
        bytes(10_000),
        b"\n" * 100,
        msgpack.packb({"format": 1}),
        os.urandom(5000),
        b"LPU\0\1\0\0\0" + bytes(40),
        b"LPU\0\1\0\0\0" + b"\xff" * 40,
    ):
        path.write_bytes(content)
        error_of(path)
    path.write_bytes(PREAMBLE.pack(b"LPU\0", 2, 0, bytes(32)))
    assert "newer" in error_of(path)
    path.write_bytes(PREAMBLE.pack(b"LPU\0", 0, 0, bytes(32)))
    assert "version 0" in error_of(path)
    path.unlink()
    assert "cannot be read" in error_of(path)
    path.mkdir()
    assert "no regular file" in error_of(path)
    os.mkfifo(tmp_path / "fifo")
    error_of(tmp_path / "fifo")
    with pytest.raises(ArtifactError):
        load("a\0b")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inside:
        found.append((*path, key))
        if isinstance(item, (dict, list)):
            found += _leaves(item, (*path, key))
    return found


@pytest.mark.long
def test_absurd_values_with_valid_hashes(file: Path) -> None:
    """Every value of the header replaced by others: an error, or a file that saves again."""
    whole = file.read_bytes()
    header = msgpack.unpackb(whole[PREAMBLE.size :][: PREAMBLE.unpack_from(whole)[2]])
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**40,
        2**63,
        -(2**63),
        float("nan"),
        1e300,
        "x",
        "",
        b"",
        [],
        {},
        [[]],
        [0, 0],
        {"a": 1},
        [1] * 400,
    ]
    places = [place for place in _leaves(header) if place[0] != "columns" or len(place) < 3]
    rng = np.random.default_rng(2)
    refused = 0
    for place in places:
        for value in (odd[i] for i in rng.choice(len(odd), 6, replace=False)):

            def change(top: dict[str, Any], place: Any = place, value: Any = value) -> None:
                inside: Any = top
                for key in place[:-1]:
                    inside = inside[key]
                inside[place[-1]] = value

            file.write_bytes(whole)
            rewritten(file, change)
            try:
                loaded = load(file)
            except ArtifactError as error:
                refused += 1
                assert str(error).isprintable()
            else:
                assert place[0] in (
                    "bindings",
                    "model",
                    "spec",
                    "predicted_cycles",
                    "cables",
                    "program_of_chip",
                    "entry_points",
                    "memory",
                    "files",
                )
                content_hash(loaded)
    assert refused > 300


def set_in(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets header[keys[0]][keys[1]]... to the last argument."""

    def change(header: Any) -> None:
        for key in keys[:-2]:
            header = header[key]
        header[keys[-2]] = keys[-1]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in("sections", 0, 0, 2**39), "does not have its size"),
        (set_in("sections", 0, 0, -1), "length"),
        (set_in("sections", [[2**40, "0" * 64]] * 1000), "size"),
        (set_in("entry_points", "decode", 0, "blocks", [2**24, 0]), "size"),
        (set_in("entry_points", "decode", 0, "blocks", [2**60, 0]), "0..16777216"),
        (set_in("entry_points", "decode", 0, "blocks", [1, 7]), "out of order"),
        (set_in("entry_points", "decode", []), "programs of decode"),
        (set_in("entry_points", "a\nb", []), "entry point"),
        (set_in("memory", 0, 0, 0, 88), "0..87"),
        (set_in("memory", 0, 0, 1, 8190), "words"),
        (set_in("memory", 0, 0, 2, 41), "size"),
        (set_in("memory", []), "memory is no list of 2"),
        (set_in("cables", [[0, 0, 1, 16]]), "link"),
        (set_in("cables", [[0, 0, 0, 0]]), "two cable ends"),
        (set_in("chips", 3), "chips of node-2"),
        (set_in("topology", "torus"), "torus"),
        (set_in("spec", "hop_cycles", 10**9), "spec.hop_cycles"),
        (set_in("spec", "lanes", 319), "fixes it"),
        (set_in("spec", "reserved_slices_west", [44]), "0..43"),
        (set_in("spec", "colour", 1), "the field colour"),
        (set_in("columns", []), "other columns"),
        (set_in("bindings", "x", float("inf")), "bindings holds inf"),
        (set_in("model", []), "model"),
        (set_in("predicted_cycles", "decode", -4), "predicted_cycles"),
        (set_in("extra", 1), "the field extra"),
        (set_in("files", []), "files: a list where a dict belongs"),
        (set_in("files", "../up", [0, []]), "files: '../up' is no plain path"),
        (set_in("files", "/etc/passwd", [0, []]), "'/etc/passwd' is no plain path"),
        (set_in("files", "tiny/..", [0, []]), "is no plain path"),
        (set_in("files", "tiny/a/b", [0, []]), "is no plain path"),
        (set_in("files", "tiny/", [0, []]), "is no plain path"),
        (set_in("files", "a\0b", [0, []]), "is no plain path"),
        (set_in("files", "other", [0, []]), "files of two models; compile it again"),
        (set_in("files", "tiny/weights", 0, 2**45), "a file's size is 35184372088832"),
        (set_in("files", "tiny/weights", 0, 4004), "a piece's offset is 4000"),
        (set_in("files", "tiny/weights", 1, 1, 0, 327), "a piece's offset is 327"),
        (set_in("files", "tiny/weights", 1, 1, 1, 6), "does not have its size"),
    ],
)
def test_what_the_error_says(file: Path, change: Callable[[Any], None], says: str) -> None:
    rewritten(file, change)
    assert says in error_of(file)


def test_overlapping_memory(file: Path) -> None:
    rewritten(file, lambda header: header["memory"][0].append([0, 39, *header["memory"][0][0][2:]]))
    assert "slice 0 has word 39 twice" in error_of(file)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("n1", 2**31 - 1, "n1"),
        ("queue", 200, "queue"),
        ("op", 5, "opcode"),
        ("cycle", -1, "cycle"),
        ("dc1", 2**31 - 1, None),
        ("gang", 9, "gang"),
        ("s0", 99, "s0"),
        ("a", 32_768, "a is"),
    ],
)
def test_bad_tables_with_valid_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, value: int, says: str | None
) -> None:
    bad = sample()
    blocks = bad.programs["prefill"][0].blocks
    blocks[column][0] = value
    if says is None:
        blocks["n1"][0] = 100_000
        says = "carry cycle"
    with pytest.raises(ArtifactError, match="not written: program 1 of 'decode': block 0"):
        save(bad, tmp_path / "a.lpu")
    assert not os.listdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(artifact_module, "_validate", lambda *_: None)
        save(bad, tmp_path / "a.lpu")
    assert says in error_of(tmp_path / "a.lpu")


def test_expansion_is_bounded(tmp_path: Path) -> None:
    bad = sample()
    blocks = new_blocks(30)
    blocks["op"], blocks["n1"], blocks["n2"] = Op.READ, 3000, 3000
    bad.programs["prefill"][0].blocks = blocks
    with pytest.raises(ArtifactError, match="expands to more than 200000000"):
        save(bad, tmp_path / "a.lpu")


@pytest.mark.parametrize(
    "change",
    [
        {"chips": 3},
        {"topology": "ring"},
        {"memory": [[]]},
        {"memory": np.zeros(3)},
        {"memory": [[(0, 0, np.zeros((1, 320)))], []]},
        {"memory": [[(0, 0, np.zeros((1, 319), np.uint8))], []]},
        {"memory": [[(0, 0)], []]},
        {"memory": [[(0, 8191, np.zeros((2, 320), np.uint8))], []]},
        {"memory": [[(0, 0, np.zeros((0, 320), np.uint8))], []]},
        {"program_of_chip": [0, 2]},
        {"programs": {"x": [None]}},
        {"programs": {3: []}},
        {"bindings": {"x": object()}},
        {"bindings": {"x": b"bytes"}},
        {"bindings": {"x": {1: 2}}},
        {"bindings": {"x": 10**5000}},
        {"bindings": {"x": float("nan")}},
        {"model": {"x": "\ud800"}},
        {"model": {"x": "y" * (33 * MIB)}},
        {"model": {"x": [0] * 600_000}},
        {"spec": None},
        {"predicted_cycles": {"x": 1.5}},
    ],
)
def test_what_cannot_be_saved(file: Path, change: dict[str, Any]) -> None:
    whole = file.read_bytes()
    with pytest.raises(ArtifactError) as caught:
        save(replace(sample(), **change), file)
    message = str(caught.value)
    assert message.startswith(f"{file}: not written: ") and message.isprintable()
    assert file.read_bytes() == whole and os.listdir(file.parent) == ["a.lpu"]


def test_memory_lies_inside_the_sram_of_the_spec(tmp_path: Path) -> None:
    rows = np.arange(640, dtype=np.uint16).view(np.uint8)[:640].reshape(2, 320)
    deep = replace(sample(), spec=PRESETS["groq-3-lp30"], memory=[[(5, 17_754, rows)], []])
    path = tmp_path / "a.lpu"
    save(deep, path)
    assert_same(deep, load(path))
    for words_per_bank, address, says in (
        (8_878, 17_755, r"the words at 17755 is 2; use an integer in 1\.\.1"),
        (8_877, 17_754, r"an address is 17754; use an integer in 0\.\.17753"),
        (4_096, 17_754, r"an address is 17754; use an integer in 0\.\.8191"),
    ):
        spec = replace(deep.spec, words_per_bank=words_per_bank)
        with pytest.raises(ArtifactError, match=says):
            save(replace(deep, spec=spec, memory=[[(5, address, rows)], []]), path)
    assert load(path).spec == deep.spec


def test_nested_data_end_in_an_error(file: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ArtifactError, match="nested deeper"):
        save(replace(sample(), model={"loop": loop}), file)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_save_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole = file.read_bytes()
    changed = sample()
    changed.model["layers"] = 99
    written: list[bytes] = []
    original = artifact_module._rows_of

    def half_way(rows: Any) -> Any:
        for chunk in original(rows):
            written.append(chunk)
            if len(written) == 5:  # three while hashing, then the second while writing
                raise error
            yield chunk

    monkeypatch.setattr(artifact_module, "_rows_of", half_way)
    with pytest.raises((ArtifactError, KeyboardInterrupt)):
        save(changed, file)
    assert len(written) == 5
    assert file.read_bytes() == whole
    assert os.listdir(file.parent) == ["a.lpu"]
    assert load(file).model["layers"] == 2


def test_unwritable_place(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "a.lpu", tmp_path):
        with pytest.raises(ArtifactError, match="not written"):
            save(sample(), path)
    assert not os.listdir(tmp_path)


def measured(path: Path) -> tuple[int, float, str]:
    """Peak bytes allocated by load, seconds, and the error if one."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        load(path)
        message = ""
    except ArtifactError as error:
        message = str(error)
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, seconds, message


@pytest.mark.long
def test_memory_of_a_large_artifact(tmp_path: Path) -> None:
    """Saving needs a few chunks, loading the file's size and a few chunks."""
    path = tmp_path / "a.lpu"
    large = sample()
    rows = np.arange(8192 * 320, dtype=np.uint32).view(np.uint8)[: 8192 * 320].reshape(8192, 320)
    for slice_ in range(1, 25):
        large.memory[0].append((slice_, 0, rows + np.uint8(slice_)))
    blocks = new_blocks(200_000)
    blocks["op"] = Op.READ
    large.programs["decode"][0] = Program(blocks)
    tracemalloc.start()
    save(large, path)
    assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    tracemalloc.stop()
    size = path.stat().st_size
    assert size > 75 * MIB
    peak, seconds, message = measured(path)
    assert not message and peak < size + 40 * MIB and seconds < 20
    assert_same(large, load(path))


@pytest.mark.parametrize(
    "packed",
    [
        b"\x91" * MIB,
        b"\xdd\x00\x10\x00\x00" * 1000,
        b"\xdd\xff\xff\xff\xff" + b"\xc0" * MIB,
        b"\xdd\x01\x00\x00\x00" + b"\x80" * 2**24,
        (b"\xdc\xff\xff" + b"\x80" * 65535) * 3,
        b"\xdc\x01\x00" + (b"\xdc\x07\x00" + b"\x80" * 0x700) * 256,
        b"\xdb\xff\xff\xff\xff" + b"x" * 1000,
        b"\xdb\x00\x20\x00\x00" + b"\xff" * 2**21,
        b"\x81\xa1x" + b"\xdb\x01\xe0\x00\x00" + b"a" * (30 * MIB - 4) + "\U0001f600".encode(),
        b"\xc7\xff\x01" + b"x" * 255,
        b"\xc1",
        b"\x81\xc4\x01x\x01",
        b"\x82\xa1x\x01\xa1x\x01",
    ],
)
@pytest.mark.long
def test_memory_of_hostile_headers(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / "a.lpu"
    start = PREAMBLE.pack(b"LPU\0", 1, len(packed), hashlib.sha256(packed).digest())
    path.write_bytes(start + packed)
    peak, seconds, message = measured(path)
    assert message and message.isprintable()
    assert peak < len(packed) + 256 * MIB and seconds < 20


def test_spec_fields_are_all_kept(file: Path) -> None:
    assert asdict(load(file).spec) == asdict(sample().spec)
    assert copy.deepcopy(load(file).spec) == sample().spec
