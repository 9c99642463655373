"""The names under which files hold a decoder's tensors: another prefix, fused, or quantised.

The rest of the product knows one name for each tensor, that of ``tensor_shapes``.  Published files
differ: a decoder that is a part of a larger model has its prefix, some families store query, key
and value as one matrix (and gate and up as another), fp8 matrices have their scales beside them.
What the files hold decides, never the configuration.  What nothing reads is looked at as well: it
is refused where the published model would compute with it.

This module knows names and shapes.  It reads no element.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from programs.models.config import MAX_CHOSEN, ModelConfig, tensor_shapes
from programs.models.tensors import (
    ITEM_BYTES,
    MX_BLOCK,
    MXFP4,
    SCALE_BLOCK,
    CheckpointError,
    FileSource,
    StoredTensor,
)

__all__ = ["NamedSource", "name_tensors"]

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

ROOT, HEAD, EMBEDDING = "model.", "lm_head.weight", "embed_tokens.weight"
FIRST_NORM = "layers.0.input_layernorm.weight"
#: Matrices that a fused one is made of, from its first row on.
FUSED = {
    "self_attn.qkv_proj.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
FUSED_OF = {part: whole for whole, parts in FUSED.items() for part in parts}
LAYER = re.compile(r"layers\.(\d{1,9})\.(.+)")
#: Constants that older files store and every library computes anew.
COMPUTED = re.compile(r".*(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias)")
#: A matrix or bias of an expert, as published files of gpt-oss do not have it.
OF_EXPERT = re.compile(
    r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.(weight|bias)"
)
#: A part of a shared expert; files have the whole.
OF_SHARED = re.compile(
    r"model\.(layers\.\d+\.mlp\.shared_expert)\.(\d+)\.((?:gate|up|down)_proj)\.weight"
)
#: Any of them tells that a layer's names are those of Llama 4.
LLAMA4_MARKS = (
    "router.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
    *(f"{name}_proj.weight" for name in ("gate", "up", "down")),
)
DENSE = tuple(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
"""Of a layer without experts."""
BLOCKS = "_blocks"
"""Behind the names of stacked matrices of 4-bit numbers."""
NAMED = 3
"""Names that a message gives as examples."""


@dataclass(frozen=True)
class Part:
    """Rows of a stored tensor, or of one of several stacked in it, from ``first`` on.

    rows: how many; None: all of it.
    """

    stored: str
    first: int = 0
    rows: int | None = None
    step: int = 1
    """From a row to the next one."""
    expert: int | None = None
    """Which matrix of several stacked ones it is."""
    transposed: bool = False
    """The file has the matrix with its columns first."""
    together: int = 1
    """Matrices of an expert whose rows follow each other in there."""
    head_dim: int = 0
    """Rows of a head whose halves the file has in turns; 0: none are."""
    column: int = 0
    """The first column that is of it, where ``columns`` says how many are."""
    columns: int | None = None


class NamedSource:
    """Tensors by the product's own names, from files that have others."""

    def __init__(self, files: FileSource, parts: Mapping[str, Part]) -> None:
        self._files = files
        self._parts = parts

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """Read the stored tensor's rows that `name` stands for; see `TensorSource.read`."""
        part = self._parts.get(name)
        if part is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}")
        if part.rows is not None:
            rows = part.first + part.step * (np.arange(part.rows) if rows is None else rows)
        if part.head_dim:
            rows = _in_turns(np.arange(part.rows or 0) if rows is None else rows, part.head_dim)
        if part.columns is not None:
            columns = part.column + (np.arange(part.columns) if columns is None else columns)
        if part.expert is not None:
            return self._files.read_stacked(
                part.stored, part.expert, rows, columns, part.transposed
            )
        return self._files.read(part.stored, rows, columns)

    def places(self, name: str) -> list[tuple[Path, int, int]]:
        """Where the bytes lie that `name` is read from: (file, first, end); nowhere if absent."""
        part = self._parts.get(name)
        return [] if part is None else self._files.places(part.stored)


def name_tensors(
    directory: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor]
) -> tuple[NamedSource, tuple[str, ...]]:
    """The tensors of a model of `config` among those stored, and the names that nothing reads.

    Raises CheckpointError for a tensor that is missing, has another shape or an unknown number
    type, for one that nothing reads though the model's result depends on it, and for an output head
    that is declared to be the embedding and is not.
    """
    prefix = _prefix(directory, tensors)
    shapes = tensor_shapes(config)
    parts: dict[str, Part] = {}
    whole: dict[str, StoredTensor] = {}
    for name in shapes:
        part = _part(name, prefix, shapes, tensors)
        if part is None and config.tied and name == ROOT + EMBEDDING:
            # Files keep one of two tensors that share their memory, whichever it is.
            part = _part(HEAD, prefix, shapes, tensors)
        if part is None:
            raise CheckpointError(f"{directory}: {_missing(name, prefix, config, tensors)}")
        if part.head_dim:
            part = replace(part, head_dim=config.head_dim)
        parts[name] = part
        if part.stored not in whole:
            whole[part.stored] = _scaled(part.stored, tensors)
    for name, shape in shapes.items():
        _check(parts[name], name, shape, shapes, whole[parts[name].stored], config.experts)
    used = set(whole) | {_scale_name(n) for n, stored in whole.items() if stored.scale is not None}
    if config.tied:
        head = next((name for name in _heads(prefix) if name in tensors), None)
        if head is not None and head not in whole:
            whole[head] = _scaled(head, tensors)
            _check(Part(head), HEAD, shapes[ROOT + EMBEDDING], shapes, whole[head])
            used |= {head, _scale_name(head)} & set(tensors)
            parts[HEAD] = Part(head)
    unread = [name for name in tensors if name not in used]
    for name in unread:
        _refuse_if_computed_with(directory, name, prefix, config)
    source = NamedSource(FileSource(whole), parts)
    if HEAD in parts and config.tied:
        _check_tied(directory, parts[HEAD].stored, source, config)
    return source, tuple(name for name in unread if not COMPUTED.fullmatch(name))


def _prefix(directory: Path, tensors: Mapping[str, StoredTensor]) -> str:
    """What stands before ``embed_tokens.weight`` and ``layers.``: ``model.``, another, nothing."""
    if ROOT + EMBEDDING in tensors or ROOT + FIRST_NORM in tensors:
        return ROOT
    # A tied model may be stored by its head alone: then its layers tell.
    for mark in (FIRST_NORM, EMBEDDING):
        found = [
            name.removesuffix(mark) for name in tensors if name == mark or name.endswith("." + mark)
        ]
        if found:
            break
    if len(found) > 1:
        raise CheckpointError(
            f"{directory} holds several decoders ({', '.join(map(repr, sorted(found)[:NAMED]))}); "
            "keep the tensors of one"
        )
    return found[0] if found else ROOT


def _heads(prefix: str) -> list[str]:
    """Names of an output head beside a decoder with `prefix`, likeliest first."""
    above = prefix.removesuffix(ROOT) if f".{prefix}".endswith(f".{ROOT}") else prefix
    return list(dict.fromkeys((above + HEAD, HEAD, prefix + HEAD)))


def _part(
    name: str,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
) -> Part | None:
    """Where the tensor that is called `name` here is stored; None where it is not."""
    if name == HEAD:
        return next((Part(head) for head in _heads(prefix) if head in tensors), None)
    special = _of_llama4(name, prefix, shapes, tensors)
    for form in (_stacked, _shared):
        special = special or form(name, prefix, shapes, tensors)
    if special is not None:
        return special
    stored = prefix + name.removeprefix(ROOT)
    if stored in tensors:
        return Part(stored)
    fused = _fused(name)
    if fused is None:
        return None
    whole, before = fused
    stored = prefix + whole.removeprefix(ROOT)
    first = sum(shapes[other][0] for other in before)
    return Part(stored, first, shapes[name][0]) if stored in tensors else None


def _fused(name: str) -> tuple[str, list[str]] | None:
    """The fused matrix that would hold `name`, and the matrices before it in there."""
    layer = LAYER.fullmatch(name.removeprefix(ROOT))
    if layer is None or layer[2] not in FUSED_OF:
        return None
    whole, start = FUSED_OF[layer[2]], name.removesuffix(layer[2])
    parts = FUSED[whole]
    return start + whole, [start + part for part in parts[: parts.index(layer[2])]]


def _stacked(
    name: str,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
) -> Part | None:
    """Where gpt-oss's files hold a matrix or bias of an expert: all experts in one tensor, rows of
    gates and ups in turns; None where they do not.
    """
    found = OF_EXPERT.fullmatch(name)
    if found is None:
        return None
    layer, expert, matrix, kind = found.groups()
    both = matrix != "down"
    stem = f"{prefix}layers.{layer}.mlp.experts.{'gate_up' if both else 'down'}_proj"
    rows = shapes[name][0]
    first, step = (int(matrix == "up"), 2) if both else (0, 1)
    if kind == "bias":
        stored, transposed = f"{stem}_bias", False
    elif stem in tensors:
        stored, transposed = stem, True
    else:
        stored, transposed = f"{stem}{BLOCKS}", False
    if stored not in tensors or f"{stem}_bias" not in tensors:
        return None
    return Part(stored, first, rows, step, int(expert), transposed)


def _in_turns(rows: Index, head_dim: int) -> Index:
    """Rows of a file that has the halves of every head in turns."""
    head, within = np.divmod(rows, head_dim)
    half = head_dim // 2
    turned: Index = head * head_dim + 2 * (within % half) + within // half
    return turned


def _of_llama4(
    name: str,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
) -> Part | None:
    """Where Llama 4's files hold what they have under other names, or in another order; None where
    they do not.
    """
    part = _llama4_part(name, prefix, shapes, tensors)
    return part if part is not None and part.stored in tensors else None


def _llama4_part(
    name: str,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
) -> Part | None:
    """Where Llama 4's files have to hold `name`; None for files or names that are no such ones."""
    layer = LAYER.fullmatch(name.removeprefix(ROOT))
    if layer is None:
        return None
    number, rest = layer.groups()
    before = f"{prefix}layers.{number}."
    if not any(f"{before}feed_forward.{mark}" in tensors for mark in LLAMA4_MARKS):
        return None
    rows = shapes[name][0]
    if rest in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
        return Part(before + rest, rows=rows, head_dim=1)  # told by the configuration
    if rest == "mlp.gate.weight":
        return Part(f"{before}feed_forward.router.weight")
    found = OF_EXPERT.fullmatch(name)
    if found is not None:
        _, expert, matrix, _ = found.groups()
        both = matrix != "down"
        stored = f"{before}feed_forward.experts.{'gate_up' if both else 'down'}_proj"
        first, together = rows * (matrix == "up"), 1 + both
        return Part(stored, first, rows, expert=int(expert), transposed=True, together=together)
    if rest.startswith("mlp.shared_expert.0."):
        return Part(before + rest.replace("mlp.shared_expert.0.", "feed_forward.shared_expert."))
    if rest in DENSE:
        return Part(before + rest.replace("mlp.", "feed_forward."))
    return None


def _shared(
    name: str,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
) -> Part | None:
    """Where files hold a part of a shared expert, as large as the chosen ones: in one of several
    times the size; None where they do not.
    """
    found = OF_SHARED.fullmatch(name)
    if found is None:
        return None
    stem, number, matrix = found.groups()
    rows, columns = shapes[name]
    kinds = (f"{prefix}{stem}{several}.{matrix}.weight" for several in ("", "s"))
    stored = next((stored for stored in kinds if stored in tensors), None)
    if stored is None:
        return None
    if matrix == "down_proj":
        return Part(stored, column=int(number) * columns, columns=columns)
    return Part(stored, int(number) * rows, rows)


def _scale_name(name: str) -> str:
    if name.endswith(BLOCKS):
        return name.removesuffix(BLOCKS) + "_scales"
    return f"{name}_scale_inv"


def _scaled(name: str, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
    """A stored tensor, an fp8 one with its scales."""
    stored = tensors[name]
    scale = tensors.get(_scale_name(name))
    if name.endswith(BLOCKS):
        return _four_bit(name, stored, scale)
    if stored.dtype != "F8_E4M3":
        return stored
    wanted = tuple(-(-extent // SCALE_BLOCK) for extent in stored.shape)
    if len(wanted) != 2 or scale is None or (scale.dtype, scale.shape) != ("F32", wanted):
        raise CheckpointError(
            f"{stored.file}: fp8 tensor {name!r} has no float32 scales {list(wanted)} "
            f"in {_scale_name(name)!r}; store it as F16, BF16 or F32, or fp8 with a scale for "
            f"every {SCALE_BLOCK} x {SCALE_BLOCK} block"
        )
    return replace(stored, scale=scale)


def _four_bit(name: str, stored: StoredTensor, scale: StoredTensor | None) -> StoredTensor:
    """Stacked matrices of 4-bit numbers with their scales, of the shape of the elements."""
    shape = stored.shape
    good = stored.dtype == "U8" and len(shape) == 4 and shape[-1] == MX_BLOCK // 2
    if not good or scale is None or (scale.dtype, scale.shape) != ("U8", shape[:-1]):
        raise CheckpointError(
            f"{stored.file}: tensor {name!r} and {_scale_name(name)!r} are no 4-bit numbers in "
            f"blocks of {MX_BLOCK} with a byte of scale for each; fetch the model again"
        )
    elements = (*shape[:2], shape[2] * MX_BLOCK)
    return replace(stored, dtype=MXFP4, shape=elements, scale=scale)


def _check(
    part: Part,
    name: str,
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    stored: StoredTensor,
    experts: int = 1,
) -> None:
    """Refuse a tensor that has another shape than the configuration says, or an unknown type."""
    stored_name, fused = part.stored, _fused(name)
    if found := OF_SHARED.fullmatch(name):
        parts = sum(f"model.{found[1]}.{n}.{found[3]}.weight" in shapes for n in range(MAX_CHOSEN))
        whole = part.columns is None
        shape = (parts * shape[0], shape[1]) if whole else (shape[0], parts * shape[1])
    if part.expert is not None:
        shape = (experts, part.step * part.together * shape[0], *shape[1:])
        shape = (shape[0], *shape[:0:-1]) if part.transposed else shape
    if fused is not None and stored_name.endswith(tuple(FUSED)):
        start = fused[0].removesuffix(next(f for f in FUSED if fused[0].endswith(f)))
        own = next(parts for whole, parts in FUSED.items() if fused[0].endswith(whole))
        shape = (sum(shapes[start + part][0] for part in own), *shape[1:])
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.file}: tensor {stored_name!r} has shape {list(stored.shape)} but config.json "
            f"says {list(shape)}; use the config.json and weights of one model"
        )
    if stored.dtype not in ITEM_BYTES and stored.dtype != MXFP4:
        raise CheckpointError(
            f"{stored.file}: tensor {stored_name!r} has number type {stored.dtype}; "
            f"store it as one of {', '.join(ITEM_BYTES)}"
        )


def _missing(
    name: str, prefix: str, config: ModelConfig, tensors: Mapping[str, StoredTensor]
) -> str:
    """One sentence on a tensor that is not there, with what would mend it."""
    if name == HEAD:
        return (
            f"tensor {HEAD!r} is missing; if the output head is the embedding, set "
            "tie_word_embeddings to true in config.json, else fetch every file of the model again"
        )
    shapes = tensor_shapes(config)

    def stored_as(wanted: str) -> str:
        part = _llama4_part(wanted, prefix, shapes, tensors)
        return prefix + wanted.removeprefix(ROOT) if part is None else part.stored

    stored = stored_as(name)
    module = stored.removesuffix("weight")
    beside = sorted(other for other in tensors if other.startswith(module))
    if beside:
        return (
            f"tensor {stored!r} is missing, and {beside[0]!r} stands in its place; "
            "use the fp16, bf16 or fp32 model, adapters merged"
        )
    layer = LAYER.fullmatch(name.removeprefix(ROOT))
    begin = f"{prefix}layers.{layer[1]}." if layer else prefix
    # Where all names beside it are known, a file was not fetched.
    there = sorted(other for other in tensors if other.startswith(begin))
    known = {stored_as(wanted) for wanted in shapes}
    strange = [
        other
        for other in there or sorted(tensors)
        if other not in known and not COMPUTED.fullmatch(other)
    ]
    if strange:
        shown = ", ".join(map(repr, strange[:NAMED]))
        return (
            f"tensor {stored!r} is missing; the files have names that are not known here "
            f"({shown}): use the model as the transformers library saves it"
        )
    return f"tensor {stored!r} is missing; fetch every safetensors file of the model again"


def _refuse_if_computed_with(directory: Path, name: str, prefix: str, config: ModelConfig) -> None:
    """Refuse a tensor that nothing here reads and the published model computes with."""
    if COMPUTED.fullmatch(name):
        return
    matters = name.startswith(tuple(head.removesuffix("weight") for head in _heads(prefix)))
    if name.startswith(prefix):
        rest = name.removeprefix(prefix)
        layer = LAYER.fullmatch(rest)
        matters = matters or rest.startswith(("embed", "norm."))
        matters = matters or (layer is not None and int(layer[1]) < config.layers)
    if not matters:
        return
    if name.endswith(".bias"):
        raise CheckpointError(
            f"{directory}: tensor {name!r} is a bias, which is not supported; "
            "use a model without biases"
        )
    raise CheckpointError(
        f"{directory}: nothing here computes with tensor {name!r}, so the result would be wrong; "
        "use a model without it, or the config.json that belongs to these weights"
    )


def _check_tied(directory: Path, head: str, source: NamedSource, config: ModelConfig) -> None:
    """Refuse a stored output head that differs from the embedding it is declared to be.

    transformers 4 drops the head and transformers 5 keeps it: nobody can tell which is meant.
    """
    for rows in _blocks(config.vocab):
        ours, theirs = source.read(HEAD, rows, None), source.read(ROOT + EMBEDDING, rows, None)
        if not np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
            raise CheckpointError(
                f"{directory}: tensor {head!r} differs from the embedding that config.json "
                "declares it to be; set tie_word_embeddings to false to compute with it, or "
                "remove it"
            )


def _blocks(rows: int, most: int = 4096) -> Iterator[Index]:
    """All row numbers, some at a time."""
    for first in range(0, rows, most):
        yield np.arange(first, min(first + most, rows))
