"""GGUF files: metadata and tensors of a model in one file, read on request.

The header is read here, every length checked against the file before anything is allocated; the
``gguf`` library knows the block formats and decodes their rows.  Published converters interleave
the rows of query and key matrices of llama models (and Granite, SmolLM3), stack the experts of a
layer, leave Phi-3's matrices fused and add 1 to the gains of Gemma's norms: `GgufSource` gives
tensors by the product's names, as they were before.

This module knows the file format, and under which names decoders lie in it
(``programs.models.gguf_metadata`` what the metadata mean).  Every problem is a `CheckpointError` of
one line.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from programs.models.config import ModelConfig, tensor_shapes
from programs.models.tensors import CheckpointError

__all__ = ["GgufFile", "GgufSource", "GgufTensor", "is_gguf", "name_gguf_tensors", "read_gguf"]

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ITEMS = 1 << 22
"""Most items of an array, in all arrays together and most tensors; vocabularies have 2^18."""
MOST_NAME = 1 << 16
"""Longest name of a field or tensor, bytes, the limit of the format."""
MOST_DIMENSIONS = 4
CACHED_BYTES = 1 << 17
"""Of blocks decoded at a time: with the numbers they become they fit a core's second cache."""
STRING, ARRAY, BOOL = 8, 9, 7
#: Number types of metadata by their number in the file.
SCALARS = {
    **dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4"))),
    **{BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"},
}

ROWS_INTERLEAVED = ("attn_q", "attn_k")
#: Families whose query and key matrices have interleaved rows.
INTERLEAVED = ("llama", "granite", "smollm3")
#: Tensors outside of layers, and those of a layer, by the product's names.
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
}
AFTER_BLOCKS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Those of a model that norms what its blocks give."""
OF_GPT_OSS = {"post_attention_layernorm": "post_attention_norm"}
ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkv")
FFN: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
"""What phi3 fuses, in order."""
IN_EXPERT = {
    **{"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
    **{f"{part}_proj": f"ffn_{part}_exps" for part in ("gate", "down", "up")},
}
#: Constants that the metadata give as well, or that nothing computes with.
CONSTANTS = re.compile(r"rope_freqs\.weight|blk\.\d+\.(attn_rot_embd|attn_rope_freqs)(\.weight)?")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor's bytes lie, and the library's number of their format."""

    kind: int
    shape: tuple[int, ...]
    """Rows first, as NumPy has it; the file has it the other way round."""
    begin: int
    """Offset of the first byte in the file."""
    end: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a file.

    metadata: by name a bool, int, float, str, a list of str, or an array of numbers.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """True for a file that is called GGUF or begins as one."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """Read the header of ``path``; raises CheckpointError with one line for what is damaged."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _Header(path, data).read()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); correct its permissions"
        ) from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{str(path)!r} cannot be read ({error}); fetch it again") from error


class _Header:
    """Reads a header from its first byte to its last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0
        self._size = len(data)
        self._items = MOST_ITEMS

    def refuse(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is no complete GGUF file ({what}); fetch it again")

    def read(self) -> GgufFile:
        if self._size < 24 or self._data[: len(MAGIC)] != MAGIC:
            raise self.refuse("it does not begin as one")
        self._at = len(MAGIC)
        version = self._number("<I")
        if version not in VERSIONS:
            big_endian = version > 0xFFFF
            raise CheckpointError(
                f"{self._path} is a GGUF file "
                f"{'of big-endian numbers' if big_endian else f'of version {version}'}; "
                "convert it to a little-endian file of version 3"
            )
        tensors, fields = self._number("<Q"), self._number("<Q")
        if max(tensors, fields) > min(MOST_ITEMS, self._size // 8):
            raise self.refuse(f"{tensors} tensors and {fields} fields in {self._size} bytes")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            name = self._text(MOST_NAME)
            if name in metadata:
                raise self.refuse(f"two fields {name[:60]!r}")
            metadata[name] = self._value(self._number("<I"))
        found = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise self.refuse("its alignment is no number of bytes")
        start = -(-self._at // alignment) * alignment
        placed: dict[str, GgufTensor] = {}
        for name, kind, shape, offset, nbytes in found:
            begin = start + offset
            if begin + nbytes > self._size:
                raise self.refuse(f"tensor {name[:60]!r} lies outside the file")
            if name in placed:
                raise self.refuse(f"two tensors {name[:60]!r}")
            placed[name] = GgufTensor(kind, shape, begin, begin + nbytes)
        return GgufFile(self._path, metadata, placed)

    def _take(self, nbytes: int) -> int:
        """Go on by so many bytes; where they begin."""
        if nbytes > self._size - self._at:
            raise self.refuse("it ends within its header")
        self._at += nbytes
        return self._at - nbytes

    def _number(self, form: str) -> int:
        return int(struct.unpack_from(form, self._data, self._take(struct.calcsize(form)))[0])

    def _text(self, most: int) -> str:
        length = self._number("<Q")
        if length > most:
            raise self.refuse(f"a text of {length} bytes")
        begin = self._take(length)
        try:
            return self._data[begin : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse("a text that is not UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text(self._size)
        if kind in SCALARS:
            return self._scalars(kind, 1)[0].item()
        if kind != ARRAY:
            raise self.refuse(f"a field of type {kind}")
        kind, count = self._number("<I"), self._number("<Q")
        self._items -= count
        if self._items < 0:
            raise self.refuse(f"an array of {count} items")
        if kind == STRING:
            return [self._text(self._size) for _ in range(count)]
        if kind in SCALARS:
            return self._scalars(kind, count)
        raise self.refuse(f"an array of type {kind}")

    def _scalars(self, kind: int, count: int) -> NDArray[Any]:
        dtype = np.dtype(SCALARS[kind])
        begin = self._take(dtype.itemsize * count)
        values = np.frombuffer(self._data[begin : self._at], dtype)
        return values != 0 if kind == BOOL else values

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int, int]:
        """(name, kind, shape, offset, bytes) of the next tensor."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # slow to import, used by few

        name = self._text(MOST_NAME)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.refuse(f"tensor {name[:60]!r} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise CheckpointError(
                f"{self._path}: tensor {name[:60]!r} has number type {kind}, which the gguf "
                "library does not know; update it (pip install -U gguf) or use another file"
            ) from None
        if min(shape) < 1 or shape[-1] % block:
            raise self.refuse(f"tensor {name[:60]!r} has rows of no whole blocks")
        return name, kind, shape, offset, math.prod(shape) // block * block_bytes


@dataclass(frozen=True)
class GgufPart:
    """What a tensor is in the file: ``stored``, or one expert of it, by another order of rows."""

    stored: str
    expert: int | None = None
    head_dim: int = 0
    """Rows of a head that are interleaved; 0: none are."""
    one_more: bool = False
    """The file holds 1 + the values."""
    first: int = 0
    """The first row of a fused matrix that is of this one."""
    rows: int = 0
    """How many these are."""
    whole: int = 0
    """Rows of the fused matrix; 0: the matrix is stored alone."""


class GgufSource:
    """Tensors of a GGUF file by the product's own names, mapped at first use."""

    def __init__(self, file: GgufFile, parts: Mapping[str, GgufPart]) -> None:
        self.file = file
        self._parts = parts
        self._map: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the file itself."""
        return {"file": self.file, "_parts": self._parts, "_map": None}

    def places(self, name: str) -> list[tuple[int, int]]:
        """Where the bytes of a tensor, by the product's name or the file's, lie: (first, end)."""
        part = self._parts.get(name)
        stored = self.file.tensors.get(name if part is None else part.stored)
        return [] if stored is None else [(stored.begin, stored.end)]

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """Decode the rows asked for and keep their columns; see `TensorSource.read`."""
        part = self._parts.get(name)
        if part is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}")
        stored = self.file.tensors[part.stored]
        if part.whole:
            own = np.arange(part.first, part.first + part.rows)
            rows = own if rows is None else own[rows]
        if part.head_dim:
            count = stored.shape[-2] if len(stored.shape) > 1 else stored.shape[0]
            rows = np.arange(count) if rows is None else np.arange(count)[rows]
            half = part.head_dim // 2
            head, within = np.divmod(rows, part.head_dim)
            rows = head * part.head_dim + 2 * (within % half) + within // half
        raw = self._bytes(stored)
        if part.expert is not None:
            raw = raw[part.expert]
        matrix = raw.ndim == 2
        if rows is not None and matrix:
            raw = raw[rows]
        if columns is not None and len(columns):
            raw, columns = _blocks_around(raw, stored.kind, columns)
        values = _decode(np.ascontiguousarray(raw), stored.kind)
        if part.one_more:
            values -= np.float32(1)
        if rows is not None and not matrix:
            values = values[rows]
        return values if columns is None else values[:, columns]

    def _bytes(self, stored: GgufTensor) -> NDArray[np.uint8]:
        """A tensor as it lies in the file, its last axis in bytes."""
        if self._map is None:
            try:
                self._map = np.memmap(self.file.path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.file.path} can no longer be read ({error}); put the file back"
                ) from error
        raw = self._map[stored.begin : stored.end]
        if len(raw) != stored.end - stored.begin:
            raise CheckpointError(f"{self.file.path} has shrunk since it was opened; open it again")
        return np.asarray(raw).reshape(*stored.shape[:-1], -1)


def _blocks_around(
    raw: NDArray[np.uint8], kind: int, columns: Index
) -> tuple[NDArray[np.uint8], Index]:
    """The blocks of rows [*, bytes] from the least column to the greatest, and the columns there.

    A chip that holds some inputs of a matrix decodes no others.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    first, last = int(columns.min()) // block, int(columns.max()) // block
    return raw[:, first * block_bytes : (last + 1) * block_bytes], columns - first * block


def _decode(raw: NDArray[np.uint8], kind: int) -> F32:
    """Rows of a format as float32, never the file's own memory."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    form = GGMLQuantizationType(kind)
    block, block_bytes = GGML_QUANT_SIZES[form]
    shape = (*raw.shape[:-1], raw.shape[-1] // block_bytes * block)
    # The library works through rows, sixteen at a time; blocks know nothing of rows, so a longer
    # row of as many blocks as the processor's cache holds decodes to the same numbers sooner.
    blocks = raw.reshape(-1, block_bytes)
    step = CACHED_BYTES // block_bytes
    values = np.empty((len(blocks), block), np.float32)
    with np.errstate(all="ignore"):  # scales of a damaged file may be anything
        for first in range(0, len(blocks), step):
            some = blocks[first : first + step].reshape(1, -1)
            values[first : first + step] = dequantize(some, form).reshape(-1, block)
    return values.reshape(shape)


def name_gguf_tensors(file: GgufFile, config: ModelConfig, family: str) -> GgufSource:
    """The tensors of a model of ``config`` in ``file``.

    Raises CheckpointError for one that is missing, has another shape or a format that cannot be
    decoded, and for one that nothing reads: the published model computes with it.
    """
    parts = {}
    for name, shape in tensor_shapes(config).items():
        part = _part(name, config, family)
        stored = file.tensors.get(part.stored)
        if stored is None:
            alone = part.stored.replace("_exps.weight", ".0.weight")
            mend = "fetch the file again"
            if part.expert is not None and alone in file.tensors:
                mend = "its experts are stored one by one, an old form; use a file made later"
            raise CheckpointError(f"{file.path}: tensor {part.stored!r} is missing; {mend}")
        wanted = shape if part.expert is None else (config.experts, *shape)
        if part.whole:
            wanted = (part.whole, *shape[1:])
        if stored.shape != wanted:
            raise CheckpointError(
                f"{file.path}: tensor {part.stored!r} has shape {list(stored.shape)} but the "
                f"metadata say {list(wanted)}; fetch the file again"
            )
        parts[name] = part
    read = {part.stored for part in parts.values()}
    for name in file.tensors:
        if name in read or CONSTANTS.fullmatch(name):
            continue
        what = "is a bias, which is not supported" if name.endswith(".bias") else "is not read here"
        raise CheckpointError(
            f"{file.path}: tensor {name[:60]!r} {what}, so the result would be wrong; use a model "
            "without it"
        )
    _check_formats(file, read)
    return GgufSource(file, parts)


def _part(name: str, config: ModelConfig, family: str) -> GgufPart:
    """What the tensor that is called ``name`` here is in a file."""
    one_more = config.unit_gain and name.endswith("norm.weight")
    if name in OUTSIDE:
        return GgufPart(OUTSIDE[name], one_more=one_more)
    stem, _, kind = name.rpartition(".")  # weight or bias
    _, _, layer, rest = stem.split(".", 3)
    if ".experts." in rest:
        _, _, expert, matrix = rest.split(".")
        return GgufPart(f"blk.{layer}.{IN_EXPERT[matrix]}.{kind}", int(expert))
    if kind == "sinks":
        return GgufPart(f"blk.{layer}.attn_sinks.weight")
    if family == "phi3" and rest in (*ATTENTION, *FFN):
        return _fused(f"blk.{layer}", rest, config)
    others = AFTER_BLOCKS if config.post_norms else OF_GPT_OSS if config.expert_bias else {}
    inner = (IN_LAYER | others)[rest]
    interleaved = family in INTERLEAVED and inner in ROWS_INTERLEAVED
    return GgufPart(
        f"blk.{layer}.{inner}.{kind}",
        head_dim=config.head_dim if interleaved else 0,
        one_more=one_more,
    )


def _fused(block: str, matrix: str, config: ModelConfig) -> GgufPart:
    """A matrix that is stored as some rows of one with others, in the order they have here."""
    if matrix in FFN:
        stored, parts = f"{block}.ffn_up.weight", FFN
        rows = [config.ffn] * 2
    else:
        stored, parts = f"{block}.attn_qkv.weight", ATTENTION
        heads = (config.heads, config.kv_heads, config.kv_heads)
        rows = [n * config.head_dim for n in heads]
    at = parts.index(matrix)
    return GgufPart(stored, first=sum(rows[:at]), rows=rows[at], whole=sum(rows))


def _check_formats(file: GgufFile, names: set[str]) -> None:
    """Refuse a format that the library cannot decode."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    tried: set[int] = set()
    for name in sorted(names):
        kind = file.tensors[name].kind
        if kind in tried:
            continue
        tried.add(kind)
        form = GGMLQuantizationType(kind)
        try:
            _decode(np.zeros((1, GGML_QUANT_SIZES[form][1]), np.uint8), kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has number type {form.name}, which the gguf library "
                "cannot decode; use a file of another type, for instance Q8_0 or F16"
            ) from None
