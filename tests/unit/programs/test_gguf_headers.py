"""Headers of GGUF files written byte by byte, each with one thing that no file may have."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from programs.models import CheckpointError
from programs.models.gguf import read_gguf

UINT32 = 4
LAYER = "blk.0.ffn_up.weight"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def field(name: str, kind: int = UINT32) -> bytes:
    return text(name) + struct.pack("<II", kind, 7)


def tensor(name: str, *shape: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)


def file(fields: list[bytes], tensors: list[bytes], magic: bytes = b"GGUF") -> bytes:
    head = magic + struct.pack("<IQQ", 3, len(tensors), len(fields))
    return head + b"".join(fields + tensors) + bytes(512)


def test_a_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file([field("a"), field("b")], [tensor(LAYER, 8, 2)]))
    read = read_gguf(path)
    assert read.metadata == {"a": 7, "b": 7}
    assert read.tensors[LAYER].shape == (2, 8)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (file([], [], magic=b"GGML"), "it does not begin as one"),
        (file([field("a"), field("a")], []), "two fields 'a'"),
        (file([field("a", 77)], []), "a field of type 77"),
        (file([], [tensor(LAYER, 8), tensor(LAYER, 8)]), f"two tensors '{LAYER}'"),
        (file([], [tensor(LAYER, *[1] * 9)]), f"tensor '{LAYER}' has 9 dimensions"),
    ],
)
def test_a_header_that_no_file_may_have(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as refusal:
        read_gguf(path)
    assert str(refusal.value) == f"{path} is no complete GGUF file ({told}); fetch it again"
