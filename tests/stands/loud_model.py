"""A shipped model whose values of one layer are beyond fp16: what it says is nonsense."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np

from programs.models import shipped_model

LAYER = 1


def write_loud_model(directory: Path) -> Path:
    """The shipped draft model in ``directory``, the values' matrix of ``LAYER`` at fp16's end."""
    shutil.copytree(shipped_model("draft"), directory)
    file = directory / "model.safetensors"
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    stored = json.loads(data[8 : 8 + length])[f"model.layers.{LAYER}.self_attn.v_proj.weight"]
    assert stored["dtype"] == "F16"
    begin, end = (8 + length + at for at in stored["data_offsets"])
    values = np.frombuffer(data, np.float16, (end - begin) // 2, begin).astype(np.float32)
    values *= 60000 / np.abs(values).max()
    data[begin:end] = values.astype(np.float16).tobytes()
    file.write_bytes(data)
    return directory
