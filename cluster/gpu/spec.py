"""What a GPU is: memory, rates, links and how much of them programs achieve, each with its source.

``GpuSpec`` is immutable and validated at construction; ``GPU_PRESETS`` names nine GPUs.  Sources:
*published* (first-party data sheets and the aiconfigurator system files of 2026-08-21),
*calibrated* (chosen so that a published figure comes out), *assumed* (not public, or recalled).
:func:`field_source` names the source of every field of every preset.  All rates are dense and of
one GPU; link rates are one direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from chip.toml_files import TomlFileError, read_toml
from cluster.errors import InputError

PUBLISHED, CALIBRATED, ASSUMED = "published", "calibrated", "assumed"
_AIC = "aiconfigurator system file, 2026-08-21"
GIB = 2**30

#: Bytes of one weight by number type; fp4 has an 8-bit scale for 16 values.  The 8-bit types share
#: one rate (A100: int8), as do the 16-bit ones.
DTYPE_BYTES: dict[str, float] = {
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5625,
}
_RATE_OF = {"fp16": "fp16", "bf16": "fp16", "fp8": "fp8", "int8": "fp8", "fp4": "fp4"}


def _f(default: Any, source: str, note: str, *, least: float | None = None) -> Any:
    return field(default=default, metadata={"source": source, "note": note, "least": least})


@dataclass(frozen=True)
class GpuSpec:
    """One GPU type and the software on it.  Units are in the names; 0 means the GPU has none."""

    name: str = _f("H100 SXM", PUBLISHED, _AIC)
    hbm_bytes: int = _f(80_000_000_000, PUBLISHED, _AIC + ": 80 GB")
    hbm_bytes_per_s: float = _f(3.35e12, PUBLISHED, _AIC)
    fp16_flops: float = _f(989e12, PUBLISHED, _AIC + ", dense", least=0)
    fp8_flops: float = _f(1978e12, PUBLISHED, _AIC + ", dense", least=0)
    fp4_flops: float = _f(0.0, PUBLISHED, "has no 4-bit rate", least=0)
    nvlink_bytes_per_s: float = _f(450e9, PUBLISHED, _AIC, least=0)
    pcie_bytes_per_s: float = _f(64e9, PUBLISHED, _AIC)
    c2c_bytes_per_s: float = _f(0.0, PUBLISHED, "no NVLink-C2C", least=0)
    internode_bytes_per_s: float = _f(50e9, PUBLISHED, _AIC)
    watts: float = _f(700.0, PUBLISHED, _AIC, least=0)
    gpus_per_node: int = _f(8, PUBLISHED, "GPUs of one NVLink domain: an HGX board")
    achieved_hbm_ratio: float = _f(0.8, PUBLISHED, "aiconfigurator: achieved HBM = 0.8 x peak")
    achieved_flops_ratio: float = _f(0.7, ASSUMED, "large matrix products reach 0.6 to 0.8")
    achieved_link_ratio: float = _f(0.8, ASSUMED, "NVLink, network, PCIe, as HBM")
    host_latency_s: float = _f(
        10e-6,
        PUBLISHED,
        "aiconfigurator: 10 us point to point over PCIe; GroqFlow: as the LPU's",
        least=0,
    )
    kernel_overhead_s: float = _f(3e-6, PUBLISHED, "aiconfigurator: +3 us per kernel")
    kernels_per_layer: int = _f(
        10, ASSUMED, "2 norms, 4 products, rope, cache write, attention, activation"
    )
    nvlink_step_s: float = _f(1e-6, ASSUMED, "one step inside a node; order of NCCL's tables")
    internode_step_s: float = _f(5e-6, PUBLISHED, "aiconfigurator: 5 us inter-rack")
    lateness_s: float = _f(1e-6, ASSUMED, "mean exponential lateness of one GPU's kernel start")

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float):
                check_number(f"gpu.{f.name}", value, f.metadata["least"])
                if f.name.endswith("_ratio") and value > 1:
                    raise InputError(f"gpu.{f.name} is {value}: a ratio is at most 1")
            elif not value:
                raise InputError(f"gpu.{f.name} is empty: give the GPU a name")
        if not (self.fp16_flops or self.fp8_flops or self.fp4_flops):
            raise InputError("gpu: set one of fp16_flops, fp8_flops and fp4_flops above 0")

    def flops(self, dtype: str) -> float:
        """Dense peak in operations per second for a number type of ``DTYPE_BYTES``."""
        check_dtype(dtype)
        rate = float(getattr(self, f"{_RATE_OF[dtype]}_flops"))
        if rate == 0:
            can = ", ".join(d for d in DTYPE_BYTES if getattr(self, f"{_RATE_OF[d]}_flops"))
            raise InputError(f"{self.name} has no published {dtype} rate: use {can}")
        return rate

    @property
    def scale_up_bytes_per_s(self) -> float:
        """Peak between GPUs of one node and direction: NVLink, or PCIe where there is none."""
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s


def check_number(name: str, value: float, least: float | None = None) -> None:
    """Refuse a number that is not finite, not positive, or below ``least`` where one is given."""
    if not math.isfinite(value) or (value <= 0 if least is None else value < least):
        rule = "positive" if least is None else f"at least {least:g}"
        raise InputError(f"{name} is {value}: it must be {rule} and finite")


def check_dtype(dtype: str) -> None:
    """Refuse a number type that is none of ``DTYPE_BYTES``."""
    if dtype not in DTYPE_BYTES:
        raise InputError(f"number type {dtype!r}: known are {', '.join(DTYPE_BYTES)}")


_Figure = tuple[Any, str, str]


def _aic(value: Any, note: str = "") -> _Figure:
    return value, PUBLISHED, f"{_AIC}{': ' if note else ''}{note}"


def _board(
    name: str,
    hbm: _Figure,
    hbm_rate: float,
    tera: tuple[float, float, float],
    nvlink_gb: float,
    pcie_gb: float,
    internode_gb: float,
    watts: float,
) -> dict[str, _Figure]:
    """A row of the aiconfigurator table: byte/s of HBM, TFLOP/s of fp16, fp8, fp4, and GB/s."""
    return {
        "name": _aic(name),
        "hbm_bytes": hbm,
        "hbm_bytes_per_s": _aic(hbm_rate),
        "fp16_flops": _aic(tera[0] * 1e12, "dense"),
        "fp8_flops": _aic(tera[1] * 1e12, "dense"),
        "fp4_flops": _aic(tera[2] * 1e12, "dense")
        if tera[2]
        else (0.0, PUBLISHED, "has no 4-bit rate"),
        "nvlink_bytes_per_s": _aic(nvlink_gb * 1e9),
        "pcie_bytes_per_s": _aic(pcie_gb * 1e9),
        "internode_bytes_per_s": _aic(internode_gb * 1e9),
        "watts": _aic(float(watts)),
    }


def _gib(number: int, note: str = "usable, as nvidia-smi reports") -> _Figure:
    return _aic(number * GIB, f"{number} GiB {note}")


_RACK = (72, PUBLISHED, "NVL72: 72 GPUs in one NVLink domain")
_C2C = (450e9, PUBLISHED, _AIC + ": GB200's NVLink-C2C")

#: field: (value, source, note) of every preset, where it is not GpuSpec's default.
_FIGURES: dict[str, dict[str, _Figure]] = {
    "a100": _board(
        "A100 SXM", _aic(80_000_000_000, "80 GB"), 2.039e12, (312, 624, 0), 300, 32, 25, 400
    )
    | {"fp8_flops": _aic(624e12, "int8; this GPU has no fp8")},
    "h100": _board(
        "H100 SXM", _aic(80_000_000_000, "80 GB"), 3.35e12, (989, 1978, 0), 450, 64, 50, 700
    ),
    "h200": _board(
        "H200 SXM", _aic(141_000_000_000, "141 GB"), 4.8e12, (989, 1978, 0), 450, 64, 50, 700
    ),
    "b200": _board("B200 SXM", _gib(180), 7.7e12, (2250, 4500, 9000), 900, 64, 100, 1000)
    | {"pcie_bytes_per_s": (64e9, ASSUMED, "Gen5 x16 by data sheet; aiconfigurator says 128")},
    "gb200": _board("GB200", _gib(185), 8.0e12, (2500, 5000, 10_000), 900, 64, 100, 1200)
    | {"gpus_per_node": _RACK, "c2c_bytes_per_s": _C2C},
    "b300": _board("B300 SXM", _gib(269), 7.75e12, (2250, 4500, 14_000), 900, 128, 100, 1100)
    | {"internode_bytes_per_s": (100e9, ASSUMED, "as B200")},
    "gb300": _board("GB300", _gib(277), 8.0e12, (2500, 5000, 15_000), 900, 64, 100, 1400)
    | {
        "internode_bytes_per_s": (100e9, ASSUMED, "as GB200"),
        "gpus_per_node": _RACK,
        "c2c_bytes_per_s": (450e9, ASSUMED, "as GB200"),
    },
    "rubin": {
        "name": ("Rubin", PUBLISHED, "Inside Rubin GPU Architecture, 2026-07-21"),
        "hbm_bytes": (288_000_000_000, PUBLISHED, "288 GB HBM4"),
        "hbm_bytes_per_s": (22e12, PUBLISHED, "22 TB/s"),
        "fp16_flops": (4e15, PUBLISHED, "4 PF dense"),
        "fp8_flops": (17.5e15, PUBLISHED, "17.5 PF dense"),
        "fp4_flops": (35e15, PUBLISHED, "35 PF dense; 50 PF in the inference mode"),
        "nvlink_bytes_per_s": (1.8e12, PUBLISHED, "1,800 GB/s each way; NVL72 260 TB/s in all"),
        "pcie_bytes_per_s": (128e9, PUBLISHED, "128 GB/s each way"),
        "c2c_bytes_per_s": (900e9, ASSUMED, "1.8 TB/s published, taken as both directions"),
        "internode_bytes_per_s": (100e9, ASSUMED, "as B200"),
        "watts": (0.0, ASSUMED, "not published"),
        "gpus_per_node": _RACK,
    },
    "rubin-cpx": {
        "name": ("Rubin CPX", PUBLISHED, "announced September 2025"),
        "hbm_bytes": (128_000_000_000, PUBLISHED, "128 GB, GDDR7 and not HBM"),
        "hbm_bytes_per_s": (2e12, ASSUMED, "about 2 TB/s, not published"),
        "fp16_flops": (5e15, ASSUMED, "a quarter of fp4"),
        "fp8_flops": (10e15, ASSUMED, "half of fp4"),
        "fp4_flops": (20e15, ASSUMED, "the low end of 20 to 30 PF; 30 PF NVFP4 announced"),
        "nvlink_bytes_per_s": (0.0, PUBLISHED, "no NVLink: GPUs meet over PCIe"),
        "pcie_bytes_per_s": (128e9, ASSUMED, "PCIe Gen6 x16"),
        "internode_bytes_per_s": (100e9, ASSUMED, "as B200"),
        "watts": (0.0, ASSUMED, "not published"),
        "nvlink_step_s": (10e-6, PUBLISHED, "aiconfigurator: 10 us point to point, over PCIe"),
    },
}

GPU_PRESETS: dict[str, GpuSpec] = {
    preset: GpuSpec(**{name: value for name, (value, _, _) in figures.items()})
    for preset, figures in _FIGURES.items()
}
DEFAULT_PRESET = "h100"


def field_source(preset: str, name: str) -> tuple[str, str]:
    """Where field ``name`` of a preset comes from: (published, calibrated or assumed; a note)."""
    if preset not in GPU_PRESETS:
        raise InputError(f"gpu {preset!r} is no preset; known: {', '.join(GPU_PRESETS)}")
    metadata = {f.name: f.metadata for f in fields(GpuSpec)}
    if name not in metadata:
        raise InputError(f"gpu.{name} is no field; known: {', '.join(metadata)}")
    if name in _FIGURES[preset]:
        _, source, note = _FIGURES[preset][name]
        return source, note
    return metadata[name]["source"], metadata[name]["note"]


def load_gpu_spec(source: str | Path) -> GpuSpec:
    """A preset by name or a TOML file whose ``[gpu]`` table overrides ``base`` (default h100).

    Raises InputError with one line saying what, where and how to mend it.
    """
    return load_table(source, "gpu", GPU_PRESETS, DEFAULT_PRESET)


Spec = TypeVar("Spec")


def load_table(source: str | Path, table: str, presets: Mapping[str, Spec], default: str) -> Spec:
    """A preset, or one of them (``base``) overridden by ``[table]`` of a TOML file."""
    text = str(source)
    if text in presets:
        return presets[text]
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{table} {text!r}: no such preset ({', '.join(presets)}) and no file")
    try:
        document = read_toml(path)
    except TomlFileError as error:
        raise InputError(f"{path}: {error}") from None
    for name in document:
        if name != table:
            raise InputError(f"{path}: {name} is unknown; the file has one table, [{table}]")
    given = document.get(table)
    if not isinstance(given, dict):
        raise InputError(f"{path}: no table [{table}]; put the fields under it")
    base = given.pop("base", default)
    if not isinstance(base, str) or base not in presets:
        raise InputError(f"{path}: {table}.base {base!r} is not one of {', '.join(presets)}")
    known: Any = presets[base]
    names = [f.name for f in fields(known)]
    for name, value in given.items():
        if name not in names:
            raise InputError(f"{path}: {table}.{name} is no field; known: {', '.join(names)}")
        wanted = type(getattr(known, name))
        if type(value) is int and abs(value) >= 1 << 63:
            raise InputError(f"{path}: {table}.{name} does not fit 64 bits: give a smaller number")
        if wanted is float and type(value) is int:
            given[name] = float(value)
        elif wanted is int and type(value) is float and value.is_integer():
            given[name] = int(value)
        elif type(value) is not wanted:
            raise InputError(
                f"{path}: {table}.{name} must be {wanted.__name__}, not {type(value).__name__}"
            )
    try:
        changed: Spec = replace(known, **given)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return changed
