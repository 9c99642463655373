"""Tensors of safetensors files, read element by element on request.

Headers are checked completely when a directory is opened; the files are then mapped, and only the
rows and columns asked for are read and decoded to float32 (from fp16, bf16, fp32, block-scaled
fp8 or, of stacked experts, block-scaled 4-bit numbers).  Where there is an index, it alone decides
which file a tensor comes from.

This module knows the file format, not what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuError

__all__ = [
    "ITEM_BYTES",
    "MXFP4",
    "MX_BLOCK",
    "SCALE_BLOCK",
    "CheckpointError",
    "FileSource",
    "StoredTensor",
    "TensorSource",
    "find_tensors",
    "has_weights",
    "number_of",
    "read_json",
    "refusal",
    "whole_of",
]

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

MAX_HEADER_BYTES = 100_000_000
"""Largest accepted safetensors header, the limit of the format's own reader."""
ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F8_E4M3": 1}
"""Bytes per element of the number types that can be read; the last only with scales of blocks."""
OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
"""Names of files with weights that are not read here."""
MOST = (1 << 63) - 1
"""Greatest whole number of a configuration; what is bounded closer is refused by its own name."""
MXFP4 = "MXFP4"
"""Number type of stacked matrices whose elements are 4-bit numbers, two a byte, the first in the
low bits, with a power of two for each `MX_BLOCK` of a row.
"""
MX_BLOCK = 32
SCALE_BLOCK = 128
"""Rows and columns of an fp8 matrix that share a scale, as DeepSeek-V3's files have them."""


class CheckpointError(LpuError, ValueError):
    """A checkpoint that cannot be used: what, where, and what would mend it, in one line."""


class TensorSource(Protocol):
    """Where tensors come from."""

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """Return the rows and columns asked for (None: all) of tensor `name` as float32."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of the first byte in the file."""
    end: int
    scale: StoredTensor | None = None
    """Of an fp8 matrix: float32 [rows / 128, columns / 128], both rounded up; of `MXFP4`, whose
    shape is that of its elements: bytes [matrices, rows, columns / 32].
    """


class FileSource:
    """Tensors in safetensors files, mapped at first use."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the files itself."""
        return {"_tensors": self._tensors, "_maps": {}}

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """Decode the elements asked for; see `TensorSource.read`."""
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}")
        values = self._elements(stored, rows, columns)
        if stored.scale is None:
            return values
        at = [
            np.arange(extent) if asked is None else asked
            for extent, asked in zip(stored.shape, (rows, columns), strict=True)
        ]
        row_block, column_block = (index // SCALE_BLOCK for index in at)
        first, height = int(row_block.min(initial=0)), int(row_block.max(initial=0)) + 1
        scales = self._elements(stored.scale, np.arange(first, height), None)
        # One rounding to float32, as the libraries that defined the format multiply.
        for block in np.unique(row_block):
            values[row_block == block] *= scales[block - first][column_block]
        return values

    def read_stacked(
        self,
        name: str,
        number: int,
        rows: Index | None,
        columns: Index | None,
        transposed: bool = False,
    ) -> F32:
        """Decode rows and columns (None: all) of matrix or row ``number`` of a stacked tensor.

        transposed: the matrix is stored with its columns first.
        """
        stored = self._tensors[name]
        if stored.dtype == MXFP4:
            return self._four_bits(stored, number, rows, columns)
        bits = self._bits(stored)[number]
        first, second = (columns, rows) if transposed else (rows, columns)
        bits = bits if first is None else bits[first]
        bits = bits if second is None else bits[:, second]
        values = _decode(np.array(bits), stored.dtype)
        return values.T if transposed else values

    def _four_bits(
        self, stored: StoredTensor, number: int, rows: Index | None, columns: Index | None
    ) -> F32:
        """Elements of a matrix of 4-bit numbers; exact, a scale of 255 is NaN."""
        assert stored.scale is not None
        packed = self._bits(stored)[number]
        scales = self._bits(stored.scale)[number]
        if rows is not None:
            packed, scales = packed[rows], scales[rows]
        at = np.arange(stored.shape[2]) if columns is None else columns
        codes = packed[:, at // 2] >> (4 * (at % 2)).astype(np.uint8) & 15
        powers = np.array(scales[:, at // MX_BLOCK])
        with np.errstate(over="ignore"):  # a damaged file's may be anything
            values: F32 = _E2M1[codes] * _E8M0[powers]
        return values

    def places(self, name: str) -> list[tuple[Path, int, int]]:
        """Where the bytes of `name` and of its scales lie: (file, first, end)."""
        stored = self._tensors[name]
        parts = [stored] if stored.scale is None else [stored, stored.scale]
        return [(part.file, part.begin, part.end) for part in parts]

    def _elements(self, stored: StoredTensor, rows: Index | None, columns: Index | None) -> F32:
        bits = self._bits(stored)
        if rows is not None:
            bits = bits[rows] if columns is None else bits[np.ix_(rows, columns)]
        elif columns is not None:
            bits = bits[:, columns]
        return _decode(np.array(bits), stored.dtype)

    def _bits(self, stored: StoredTensor) -> NDArray[Any]:
        """A tensor as it lies in its file, mapped; 4-bit numbers two a byte."""
        if stored.file not in self._maps:
            try:
                self._maps[stored.file] = np.memmap(stored.file, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{stored.file} can no longer be read ({error}); put the file back"
                ) from error
        raw = self._maps[stored.file][stored.begin : stored.end]
        if len(raw) != stored.end - stored.begin:
            raise CheckpointError(f"{stored.file} has shrunk since it was opened; open it again")
        if stored.dtype in (MXFP4, "U8"):
            return raw.reshape(*stored.shape[:2], -1)
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[ITEM_BYTES[stored.dtype]]
        return raw.view(kind).reshape(stored.shape)


def _e4m3_values() -> F32:
    """The value of each of the 256 patterns: sign, 4 exponent bits (bias 7), 3 mantissa bits.

    Source: "FP8 Formats for Deep Learning" (2022): no infinities, S.1111.111 is NaN.
    """
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, (code & 7) / 8.0
    normal = np.ldexp(1.0 + mantissa, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa, -6), normal)
    values[code & 127 == 127] = np.nan
    return np.where(code < 128, values, -values).astype(np.float32)


_E4M3 = _e4m3_values()
#: By code: sign, 2 exponent bits (bias 1), 1 mantissa bit; and powers of two by their biased
#: exponent.  Source: "OCP Microscaling Formats (MX) Specification" 1.0 (2023).
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_E2M1 = np.concatenate([_E2M1, -_E2M1])
_E8M0 = np.ldexp(np.float32(1), np.minimum(np.arange(256), 254) - 127).astype(np.float32)
_E8M0[255] = np.nan


def _decode(bits: NDArray[Any], dtype: str) -> F32:
    """Return stored bits (uint8, uint16 or uint32) of number type `dtype` as float32."""
    if dtype == "F8_E4M3":
        widened: F32 = _E4M3[bits]
        return widened
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float32)


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the directory's safetensors files by name.

    Raises CheckpointError where there are none, where two files hold a tensor and no index says
    which of them counts, and where the file that the index names for a tensor does not hold it.
    """
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    weight_map: dict[str, str] = {}
    if index.is_file():
        weight_map = _weight_map(index)
        files = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{directory} has no *.safetensors file; "
            + (
                "convert the weights to safetensors"
                if has_weights(directory)
                else "fetch the model's weights, or name a model that has them"
            )
        )
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, stored in _read_header(file).items():
            if weight_map.get(name, file.name) != file.name:
                continue
            if name in tensors:
                raise CheckpointError(
                    f"{file} and {tensors[name].file.name} both hold tensor {name!r}; "
                    "remove the file that is not the model's"
                )
            tensors[name] = stored
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{index} says that tensor {name!r} is in {shard}, which does not hold it; "
                "fetch both files again"
            )
    return tensors


def has_weights(directory: Path) -> bool:
    """Whether a directory holds files of weights, in whatever format."""
    patterns = ("*.safetensors", "*.safetensors.index.json", *OTHER_WEIGHTS)
    return any(True for pattern in patterns for _ in directory.glob(pattern))


def _weight_map(index: Path) -> dict[str, str]:
    """The file's name for each tensor, as the index has it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise CheckpointError(f"{index}: weight_map is missing or no table of file names")
    return weight_map


def header_bytes(file: Path) -> int:
    """Bytes of safetensors file `file` before its first tensor."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        return min(8 + length, file.stat().st_size)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); correct its permissions"
        ) from error


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors that the header of safetensors file `file` declares."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{file} is no complete safetensors file ({what}); fetch it again")

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(min(length, MAX_HEADER_BYTES))
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise CheckpointError(
            f"{str(file)!r} cannot be read ({error}); fetch the file or correct its permissions"
        ) from error
    if size < 8 or length > MAX_HEADER_BYTES or len(text) < length:
        raise refuse(f"header of {length} bytes in a file of {size}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse("its header is not JSON") from error
    if not isinstance(header, dict):
        raise refuse("its header is no table")
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            shape = tuple(int(extent) for extent in entry["shape"])
            begin, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            dtype = str(entry["dtype"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise refuse(f"the entry of {name!r} is damaged") from error
        if not 8 + length <= begin <= end <= size or min(shape, default=0) < 0:
            raise refuse(f"tensor {name!r} lies outside the file")
        each = ITEM_BYTES | {"U8": 1}  # the bytes that 4-bit numbers lie in
        if dtype in each and end - begin != math.prod(shape) * each[dtype]:
            raise refuse(f"tensor {name!r} has the wrong number of bytes")
        tensors[name] = StoredTensor(file, dtype, shape, begin, end)
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); correct its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON; fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object; fetch the file again")
    return value


def refusal(what: str, mend: str) -> CheckpointError:
    """What is wrong and what would mend it, in one line."""
    return CheckpointError(f"{what}; {mend}")


def number_of(table: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number of a JSON object; ``default`` where it is null or missing."""
    value = table.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(f"{name} is {shown(value)}", "it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise refusal(f"{name} is too large", "correct it") from None


def whole_of(table: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of a JSON object; ``default`` where it is null or missing."""
    value = table.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise refusal(f"{name} is {shown(value)}", "it must be a whole number")
    if abs(value) > MOST:
        raise refusal(f"{name} is too large", "correct it")
    return value
